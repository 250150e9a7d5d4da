// Runs the kernels for CUDA on the processor, for tests: each thread of a block as a fiber that stops where it must wait
// for others. Included only by emulation.cpp.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define LUTHIER_EMULATION
#define KERNEL(threads) static void
#define DEVICE inline
#define __shared__ static

struct Index {
  unsigned x = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 << 10;

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = READY;
  // What it gives to others, and what it gets.
  unsigned given = 0, taken = 0, distance = 0;
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static unsigned current;
static const std::pair<void (*)(void**), void**>* work;

inline void enter() {
  work->first(work->second);
  fibers[current].state = DONE;
}

inline unsigned wait(State state, unsigned given, unsigned distance) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  fiber.given = given;
  fiber.distance = distance;
  swapcontext(&fiber.context, &scheduler);
  return fiber.taken;
}

// Lets the threads from `first` to `last` go on if all wait at the same place; returns whether they did.
inline bool release(unsigned first, unsigned last, State state) {
  for (unsigned i = first; i < last; ++i)
    if (fibers[i].state != state) return false;
  unsigned any = 0;
  for (unsigned i = first; i < last; ++i) any |= fibers[i].given;
  for (unsigned i = first; i < last; ++i) {
    fibers[i].taken = state == AT_BARRIER ? any : fibers[first + ((i - first) ^ fibers[i].distance)].given;
    fibers[i].state = READY;
  }
  return true;
}

inline void run_block() {
  for (Fiber& fiber : fibers) {
    fiber.state = READY;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 0);
  }
  const unsigned count = static_cast<unsigned>(fibers.size());
  while (true) {
    bool moved = false, ended = true;
    for (current = 0; current < count; ++current) {
      if (fibers[current].state != READY) continue;
      threadIdx.x = current;
      swapcontext(&scheduler, &fibers[current].context);
      moved = true;
    }
    for (const Fiber& fiber : fibers) ended &= fiber.state == DONE;
    if (ended) return;
    for (unsigned warp = 0; warp < count; warp += WARP) moved |= release(warp, warp + WARP, AT_SHUFFLE);
    moved |= release(0, count, AT_BARRIER);
    if (!moved) {
      std::fputs("a kernel waits for threads that do not come\n", stderr);
      std::abort();
    }
  }
}

// Has the signature of CUDA's cuLaunchKernel. A function is one of call's.
inline int launch(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                  void*, void** arguments, void**) {
  if (threads % WARP != 0 || threads == 0 || blocks == 0) return 1;
  const std::pair<void (*)(void**), void**> todo{reinterpret_cast<void (*)(void**)>(function), arguments};
  work = &todo;
  fibers.resize(threads);
  for (Fiber& fiber : fibers)
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
  blockDim.x = threads;
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block();
  return 0;
}

template <auto kernel>
struct Caller;

// Calls a kernel with the values that an array of pointers points to.
template <class... A, void (*kernel)(A...)>
struct Caller<kernel> {
  template <size_t... I>
  static void with(void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
  }
  static void call(void** arguments) { with(arguments, std::index_sequence_for<A...>()); }
};

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::AT_BARRIER, 0, 0); }
inline int __syncthreads_or(int x) { return static_cast<int>(emulation::wait(emulation::AT_BARRIER, x != 0, 0)); }

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline unsigned __shfl_xor_sync(unsigned, unsigned x, int distance) {
  return emulation::wait(emulation::AT_SHUFFLE, x, static_cast<unsigned>(distance));
}
inline float __shfl_xor_sync(unsigned all, float x, int distance) {
  return __uint_as_float(__shfl_xor_sync(all, __float_as_uint(x), distance));
}

// Compiled without contraction, so each of these rounds.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::max;

inline unsigned rounded_to_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (std::isnan(x)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned narrow(float low, float high) { return rounded_to_bf16(low) | rounded_to_bf16(high) << 16; }

inline float of_half(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                          : exponent == 31 ? (fraction ? NAN : INFINITY)
                                           : std::ldexp(static_cast<float>(fraction | 1024), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}
