// Vectors of one instruction set and functions on them. Included only by kernels.cpp, so everything is in the
// anonymous namespace.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define LUTHIER_TABLE kernels_avx512_bf16
#define LUTHIER_NAME "avx512_bf16"
#define LUTHIER_LANES 16
#elif defined(__AVX512F__)
#define LUTHIER_TABLE kernels_avx512
#define LUTHIER_NAME "avx512"
#define LUTHIER_LANES 16
#elif defined(__AVX2__)
#define LUTHIER_TABLE kernels_avx2
#define LUTHIER_NAME "avx2"
#define LUTHIER_LANES 8
#else
#define LUTHIER_TABLE kernels_base
#define LUTHIER_NAME "base"
#define LUTHIER_LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

namespace luthier {
namespace {

constexpr int64_t LANES = LUTHIER_LANES;
typedef float Floats __attribute__((vector_size(4 * LUTHIER_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LUTHIER_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LUTHIER_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LUTHIER_LANES)));

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE size_t size_of(int64_t bytes) { return static_cast<size_t>(bytes); }

INLINE Floats all(float value) { return Floats{} + value; }

// bf16 is the upper half of a float.
INLINE Floats widened(Halves bits) { return (Floats)(__builtin_convertvector(bits, Words) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
INLINE Halves narrowed(Floats v) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Words quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(v == v ? rounded : quiet, Halves);
#endif
}

INLINE Floats load(const float* from) {
  Floats v;
  memcpy(&v, from, sizeof v);
  return v;
}

INLINE Floats load(const bf16* from) {
  Halves v;
  memcpy(&v, from, sizeof v);
  return widened(v);
}

INLINE void store(float* to, Floats v) { memcpy(to, &v, sizeof v); }

INLINE void store(bf16* to, Floats v) {
  const Halves bits = narrowed(v);
  memcpy(to, &bits, sizeof bits);
}

// The first `count` lanes, the others zero.
INLINE Floats load_part(const float* from, int64_t count) {
  Floats v = {};
  memcpy(&v, from, size_of(count * 4));
  return v;
}

INLINE Floats load_part(const bf16* from, int64_t count) {
  Halves v = {};
  memcpy(&v, from, size_of(count * 2));
  return widened(v);
}

INLINE void store_part(float* to, Floats v, int64_t count) { memcpy(to, &v, size_of(count * 4)); }

INLINE void store_part(bf16* to, Floats v, int64_t count) {
  const Halves bits = narrowed(v);
  memcpy(to, &bits, size_of(count * 2));
}

// The value after storing as T and loading again. Kernels round wherever the operations that they replace store a
// result, so that bf16 results equal PyTorch's.
template <class T>
INLINE Floats rounded(Floats v);

template <>
inline __attribute__((always_inline)) Floats rounded<float>(Floats v) {
  return v;
}

template <>
inline __attribute__((always_inline)) Floats rounded<bf16>(Floats v) {
  return widened(narrowed(v));
}

INLINE float sum(Floats v) {
  float total = 0;
  for (int64_t i = 0; i < LANES; ++i) total += v[i];
  return total;
}

// exp to within 2 units in the last place (Cephes expf), clamped to the smallest and largest results.
INLINE Floats exponential(Floats x) {
  const Floats low = all(-87.3f), high = all(88.3f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  // Adding 1.5 · 2^23 rounds to an integer in the lowest bits.
  const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
  const Floats whole = shifted - 12582912.0f;
  Floats r = x - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints power = (((Ints)shifted) << 23) + (127 << 23);
  return p * (Floats)power;
}

}  // namespace
}  // namespace luthier
