// Products with weights as stored in a file, decoded during the product. Decoded weights equal those of
// weights/dequantise.rs.
#pragma once

#include "vectors.h"

namespace luthier {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(16)));

constexpr int64_t PARTS = 16 / LANES;

// 16 consecutive weights of a row.
struct Sixteen {
  Floats part[PARTS];
};

INLINE Sixteen scaled(Sixteen q, float scale, float offset) {
  for (int64_t i = 0; i < PARTS; ++i) q.part[i] = q.part[i] * scale + offset;
  return q;
}

INLINE Bytes bytes(const uint8_t* from) {
  Bytes v;
  memcpy(&v, from, sizeof v);
  return v;
}

INLINE Sixteen widen(Bytes q) {
  Sixteen out;
#if defined(__AVX512F__)
  out.part[0] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)q));
#elif defined(__AVX2__)
  out.part[0] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32((__m128i)q));
  out.part[1] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)q, 8)));
#else
  for (int64_t i = 0; i < 16; ++i) out.part[i / LANES][i % LANES] = q[i];
#endif
  return out;
}

INLINE Sixteen widen_signed(Bytes q) {
  Sixteen out;
#if defined(__AVX512F__)
  out.part[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q));
#elif defined(__AVX2__)
  out.part[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)q));
  out.part[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 8)));
#else
  for (int64_t i = 0; i < 16; ++i) out.part[i / LANES][i % LANES] = static_cast<int8_t>(q[i]);
#endif
  return out;
}

INLINE Sixteen widen_bf16(const uint8_t* from) {
  Sixteen out;
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  out.part[0] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#elif defined(__AVX2__)
  for (int64_t i = 0; i < 2; ++i) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
    out.part[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
#else
  for (int64_t i = 0; i < 16; ++i) {
    const uint32_t bits = (from[2 * i] | static_cast<uint32_t>(from[2 * i + 1]) << 8) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    out.part[i / LANES][i % LANES] = value;
  }
#endif
  return out;
}

// IEEE half to single.
INLINE float half(const uint8_t* from) {
  uint16_t bits;
  memcpy(&bits, from, sizeof bits);
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t rest = bits & 0x7FFFu;
  uint32_t raw = rest << 13;
  float value;
  memcpy(&value, &raw, sizeof value);
  value *= 5.192296858534828e33f;  // 2^112 moves the exponent's bias, also of subnormals
  memcpy(&raw, &value, sizeof raw);
  if (rest >= 0x7C00u) raw |= 0x7F800000u;
  raw |= (bits & 0x8000u) << 16;
  memcpy(&value, &raw, sizeof value);
  return value;
#endif
}

// One bit for each of 16 weights, the lowest first, as 16 if it is set.
INLINE Bytes fifth_bits(uint32_t bits) {
  const Bytes select = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8_t low = static_cast<uint8_t>(bits), high = static_cast<uint8_t>(bits >> 8);
  const Bytes spread = {low, low, low, low, low, low, low, low, high, high, high, high, high, high, high, high};
  return (Bytes)((spread & select) != 0) & 16;
}

// Scale and minimum, 6 bits each, of group `g` of 8, packed into 12 bytes.
INLINE void k_scale(const uint8_t* packed, int64_t g, float* scale, float* minimum) {
  if (g < 4) {
    *scale = static_cast<float>(packed[g] & 63);
    *minimum = static_cast<float>(packed[g + 4] & 63);
  } else {
    *scale = static_cast<float>((packed[g + 4] & 15) | (packed[g - 4] >> 6 << 4));
    *minimum = static_cast<float>((packed[g + 4] >> 4) | (packed[g] >> 6 << 4));
  }
}

// Weights 32 · g to 32 · g + 32 of a block.
template <Format FORMAT>
INLINE void group(const uint8_t* block, int64_t g, Sixteen* first, Sixteen* second) {
  switch (FORMAT) {
    case BF16:
      *first = widen_bf16(block);
      *second = widen_bf16(block + 32);
      return;
    case Q8_0: {
      const float scale = half(block);
      *first = scaled(widen_signed(bytes(block + 2)), scale, 0);
      *second = scaled(widen_signed(bytes(block + 18)), scale, 0);
      return;
    }
    case Q4_0: {
      const float scale = half(block);
      const Bytes q = bytes(block + 2);
      *first = scaled(widen(q & 15), scale, -8 * scale);
      *second = scaled(widen(q >> 4), scale, -8 * scale);
      return;
    }
    case Q4_1: {
      const float scale = half(block), minimum = half(block + 2);
      const Bytes q = bytes(block + 4);
      *first = scaled(widen(q & 15), scale, minimum);
      *second = scaled(widen(q >> 4), scale, minimum);
      return;
    }
    case Q5_0: {
      const float scale = half(block);
      uint32_t fifth;
      memcpy(&fifth, block + 2, sizeof fifth);
      const Bytes q = bytes(block + 6);
      *first = scaled(widen((q & 15) | fifth_bits(fifth)), scale, -16 * scale);
      *second = scaled(widen((q >> 4) | fifth_bits(fifth >> 16)), scale, -16 * scale);
      return;
    }
    case Q5_1: {
      const float scale = half(block), minimum = half(block + 2);
      uint32_t fifth;
      memcpy(&fifth, block + 4, sizeof fifth);
      const Bytes q = bytes(block + 8);
      *first = scaled(widen((q & 15) | fifth_bits(fifth)), scale, minimum);
      *second = scaled(widen((q >> 4) | fifth_bits(fifth >> 16)), scale, minimum);
      return;
    }
    case Q4_K:
    case Q5_K: {
      float scale, minimum;
      k_scale(block + 4, g, &scale, &minimum);
      scale *= half(block);
      minimum *= -half(block + 2);
      const int shift = static_cast<int>(g % 2 * 4), bit = static_cast<int>(g);
      const uint8_t* q = block + (FORMAT == Q5_K ? 48 : 16) + g / 2 * 32;
      Bytes low = bytes(q) >> shift & 15, high = bytes(q + 16) >> shift & 15;
      if (FORMAT == Q5_K) {
        low |= (bytes(block + 16) >> bit & 1) << 4;
        high |= (bytes(block + 32) >> bit & 1) << 4;
      }
      *first = scaled(widen(low), scale, minimum);
      *second = scaled(widen(high), scale, minimum);
      return;
    }
    case Q6_K: {
      const float scale = half(block + 208);
      const int64_t part = g / 4, quarter = g % 4;
      const int low_shift = static_cast<int>(quarter / 2 * 4), high_shift = static_cast<int>(quarter * 2);
      const uint8_t *low = block + 64 * part + quarter % 2 * 32, *high = block + 128 + 32 * part;
      const uint8_t* scales = block + 192 + 8 * part + 2 * quarter;
      const float one = scale * static_cast<float>(static_cast<int8_t>(scales[0]));
      const float two = scale * static_cast<float>(static_cast<int8_t>(scales[1]));
      *first = scaled(widen((bytes(low) >> low_shift & 15) | (bytes(high) >> high_shift & 3) << 4), one, -32 * one);
      *second =
          scaled(widen((bytes(low + 16) >> low_shift & 15) | (bytes(high + 16) >> high_shift & 3) << 4), two, -32 * two);
      return;
    }
    case FORMATS:
      return;
  }
}

// Bytes by which weights are prefetched, because hardware prefetching stops at each page.
constexpr int64_t AHEAD = 3072;

INLINE int64_t source_row(int64_t row, const Stored& weights) {
  if (weights.heads == 0) return row;
  const int64_t size = weights.rows / weights.heads, within = row % size, half_size = size / 2;
  return row / size * size + 2 * (within % half_size) + within / half_size;
}

// y[m, row] = x[m] · weights[row] for TOKENS consecutive m and rows [start, end).
template <Format FORMAT, int TOKENS>
void some_tokens(const Stored& weights, const float* x, float* y, int64_t start, int64_t end) {
  const int64_t columns = weights.columns;
  const int64_t row_bytes = columns / BLOCK_ELEMENTS[FORMAT] * BLOCK_BYTES[FORMAT];
  for (int64_t row = start; row < end; ++row) {
    const uint8_t* block = weights.bytes + source_row(row, weights) * row_bytes;
    Floats totals[TOKENS][2] = {};
    for (int64_t at = 0; at < columns; at += BLOCK_ELEMENTS[FORMAT], block += BLOCK_BYTES[FORMAT]) {
      for (int64_t g = 0; g < BLOCK_ELEMENTS[FORMAT] / 32; ++g) {
        Sixteen first, second;
        __builtin_prefetch(block + AHEAD + 32 * g, 0, 0);
        group<FORMAT>(block, g, &first, &second);
        for (int m = 0; m < TOKENS; ++m) {
          const float* input = x + m * columns + at + 32 * g;
          for (int64_t i = 0; i < PARTS; ++i) {
            totals[m][0] += first.part[i] * load(input + i * LANES);
            totals[m][1] += second.part[i] * load(input + 16 + i * LANES);
          }
        }
      }
    }
    for (int m = 0; m < TOKENS; ++m) y[m * weights.rows + row] = sum(totals[m][0] + totals[m][1]);
  }
}

template <Format FORMAT>
void all_tokens(const Stored& weights, const float* x, float* y, int64_t tokens, int64_t start, int64_t end) {
  int64_t m = 0;
  const int64_t in = weights.columns, out = weights.rows;
  for (; m + 4 <= tokens; m += 4) some_tokens<FORMAT, 4>(weights, x + m * in, y + m * out, start, end);
  for (; m + 2 <= tokens; m += 2) some_tokens<FORMAT, 2>(weights, x + m * in, y + m * out, start, end);
  for (; m < tokens; ++m) some_tokens<FORMAT, 1>(weights, x + m * in, y + m * out, start, end);
}

void stored_product(Format format, const Stored& weights, const float* x, float* y, int64_t tokens, int64_t start,
                    int64_t end) {
  switch (format) {
    case BF16: return all_tokens<BF16>(weights, x, y, tokens, start, end);
    case Q8_0: return all_tokens<Q8_0>(weights, x, y, tokens, start, end);
    case Q4_0: return all_tokens<Q4_0>(weights, x, y, tokens, start, end);
    case Q4_1: return all_tokens<Q4_1>(weights, x, y, tokens, start, end);
    case Q5_0: return all_tokens<Q5_0>(weights, x, y, tokens, start, end);
    case Q5_1: return all_tokens<Q5_1>(weights, x, y, tokens, start, end);
    case Q4_K: return all_tokens<Q4_K>(weights, x, y, tokens, start, end);
    case Q5_K: return all_tokens<Q5_K>(weights, x, y, tokens, start, end);
    case Q6_K: return all_tokens<Q6_K>(weights, x, y, tokens, start, end);
    case FORMATS: return;
  }
}

}  // namespace
}  // namespace luthier
