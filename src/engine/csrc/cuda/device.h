// What the kernels for CUDA share. A program is interface.h and this file, followed by one of kernels: NVIDIA's run-time
// compiler compiles it for the GPU at hand, without any other header, and tests compile it for the processor
// (emulation.h).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#ifndef LUTHIER_EMULATION
#define KERNEL(threads) extern "C" __global__ __launch_bounds__(threads) void
#define DEVICE __device__ __forceinline__

// Two numbers as bf16, the first in the lower half, each rounded to the nearest, ties to even.
DEVICE u32 narrow(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

DEVICE float of_half(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
#endif

// The lower and the upper of two bf16 numbers.
DEVICE float low(u32 both) { return __uint_as_float(both << 16); }
DEVICE float high(u32 both) { return __uint_as_float(both & 0xffff0000u); }

// An element of a tensor in bf16.
struct bf16 {
  u16 bits;
};

DEVICE float value(bf16 x) { return low(x.bits); }
DEVICE float value(float x) { return x; }
DEVICE void store(bf16* to, float x) { to->bits = static_cast<u16>(narrow(x, 0)); }
DEVICE void store(float* to, float x) { *to = x; }

// Eight elements in bf16, which are read and written at once.
struct alignas(16) Eight {
  u32 pairs[4];
};

DEVICE void widen(const Eight& from, float* to) {
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = low(from.pairs[i]);
    to[2 * i + 1] = high(from.pairs[i]);
  }
}

DEVICE Eight narrowed(const float* from) {
  Eight result;
  for (int i = 0; i < 4; ++i) result.pairs[i] = narrow(from[2 * i], from[2 * i + 1]);
  return result;
}

struct alignas(16) FourFloats {
  float values[4];
};

// Reads eight elements. The address is a multiple of 16 bytes.
DEVICE void load_eight(const bf16* from, float* to) { widen(*reinterpret_cast<const Eight*>(from), to); }
DEVICE void load_eight(const float* from, float* to) {
  for (int i = 0; i < 2; ++i) {
    const FourFloats four = reinterpret_cast<const FourFloats*>(from)[i];
    for (int j = 0; j < 4; ++j) to[4 * i + j] = four.values[j];
  }
}

// Writes eight elements. The address is a multiple of 16 bytes.
DEVICE void store_eight(bf16* to, const float* from) { *reinterpret_cast<Eight*>(to) = narrowed(from); }
DEVICE void store_eight(float* to, const float* from) {
  for (int i = 0; i < 2; ++i) {
    FourFloats four;
    for (int j = 0; j < 4; ++j) four.values[j] = from[4 * i + j];
    reinterpret_cast<FourFloats*>(to)[i] = four;
  }
}

// This thread's number among all, and the number of all.
DEVICE i64 first_index() { return blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; }
DEVICE i64 all_threads() { return static_cast<i64>(gridDim.x) * blockDim.x; }

// Sum over the 32 threads of a warp, in each of them.
DEVICE float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// y [tokens, rows] = x [tokens, columns] · matrixᵀ for up to TOKENS tokens: a warp for each row, eight elements for each
// thread and step. eight(first, out) gives those of the matrix from the one with this number, row after row.
template <int TOKENS, class Weights>
DEVICE void few_tokens_product(const Weights& eight, const bf16* x, bf16* y, int tokens, int rows, int columns) {
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  for (int row = blockIdx.x * warps + threadIdx.x / 32; row < rows; row += gridDim.x * warps) {
    float sums[TOKENS] = {};
    for (int at = 8 * lane; at < columns; at += 8 * 32) {
      float weights[8], input[8];
      eight(static_cast<i64>(row) * columns + at, weights);
      for (int token = 0; token < TOKENS; ++token) {
        if (token >= tokens) break;
        widen(*reinterpret_cast<const Eight*>(x + static_cast<i64>(token) * columns + at), input);
        for (int k = 0; k < 8; ++k) sums[token] += weights[k] * input[k];
      }
    }
    for (int token = 0; token < TOKENS; ++token) {
      if (token >= tokens) break;
      const float sum = warp_sum(sums[token]);
      if (lane == 0) store(y + static_cast<i64>(token) * rows + row, sum);
    }
  }
}
