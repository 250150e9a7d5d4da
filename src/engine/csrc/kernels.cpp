// See kernels.h. Compiled several times, so nothing in here may be shared between the copies: no templates or inline
// functions of the standard library, everything in the anonymous namespace but the table.

#include "kernels.h"

#include <math.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
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
typedef uint8_t Bytes __attribute__((vector_size(16)));

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE Floats all(float value) { return Floats{} + value; }

INLINE Floats load(const float* from) {
  Floats v;
  memcpy(&v, from, sizeof v);
  return v;
}

INLINE void store(float* to, Floats v) { memcpy(to, &v, sizeof v); }

// The first `count` lanes, the others zero.
INLINE Floats load_part(const float* from, int64_t count) {
  Floats v = {};
  memcpy(&v, from, static_cast<size_t>(count) * sizeof(float));
  return v;
}

INLINE void store_part(float* to, Floats v, int64_t count) { memcpy(to, &v, static_cast<size_t>(count) * sizeof(float)); }

INLINE float sum(Floats v) {
  float total = 0;
  for (int64_t i = 0; i < LANES; ++i) total += v[i];
  return total;
}

// exp to within 2 units in the last place (Cephes expf); 0 and infinity become the smallest and largest of their side.
INLINE Floats exponential(Floats x) {
  const Floats low = all(-87.3f), high = all(88.3f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  // Adding 1.5 · 2^23 rounds to a whole number, which then stands in the lowest bits.
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

void rms_norm_forward(const float* x, const float* weight, float* y, float* scales, int64_t start, int64_t end,
                      int64_t width, float epsilon) {
  const int64_t full = width / LANES * LANES, rest = width - full;
  for (int64_t row = start; row < end; ++row) {
    const float* in = x + row * width;
    float* out = y + row * width;
    const Floats tail = load_part(in + full, rest);
    Floats squares = tail * tail;
    for (int64_t i = 0; i < full; i += LANES) {
      const Floats v = load(in + i);
      squares += v * v;
    }
    const float scale = 1.0f / sqrtf(sum(squares) / static_cast<float>(width) + epsilon);
    scales[row] = scale;
    for (int64_t i = 0; i < full; i += LANES) store(out + i, load(in + i) * scale * load(weight + i));
    store_part(out + full, tail * scale * load_part(weight + full, rest), rest);
  }
}

// dx = scale · (weight · dy - x̂ · mean(x̂ · weight · dy)) with x̂ = x · scale.
void rms_norm_backward(const float* x, const float* weight, const float* scales, const float* dy, float* dx,
                       int64_t start, int64_t end, int64_t width) {
  const int64_t full = width / LANES * LANES, rest = width - full;
  for (int64_t row = start; row < end; ++row) {
    const float *in = x + row * width, *gradient = dy + row * width;
    float* out = dx + row * width;
    const float scale = scales[row];
    const Floats tail = load_part(weight + full, rest) * load_part(gradient + full, rest);
    Floats products = tail * load_part(in + full, rest);
    for (int64_t i = 0; i < full; i += LANES) products += load(in + i) * load(weight + i) * load(gradient + i);
    const float shared = sum(products) / static_cast<float>(width) * scale * scale;
    for (int64_t i = 0; i < full; i += LANES)
      store(out + i, (load(weight + i) * load(gradient + i) - load(in + i) * shared) * scale);
    store_part(out + full, (tail - load_part(in + full, rest) * shared) * scale, rest);
  }
}

INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

void swiglu_forward(const float* gate, const float* up, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats g = load(gate + i);
    store(y + i, g * sigmoid(g) * load(up + i));
  }
  const Floats g = load_part(gate + i, count - i);
  store_part(y + i, g * sigmoid(g) * load_part(up + i, count - i), count - i);
}

INLINE Floats silu_slope(Floats gate, Floats s) { return s * (1.0f + gate * (1.0f - s)); }

void swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats g = load(gate + i), d = load(dy + i), u = load(up + i), s = sigmoid(g);
    store(dup + i, d * g * s);
    store(dgate + i, d * u * silu_slope(g, s));
  }
  const int64_t rest = count - i;
  const Floats g = load_part(gate + i, rest), d = load_part(dy + i, rest), u = load_part(up + i, rest);
  const Floats s = sigmoid(g);
  store_part(dup + i, d * g * s, rest);
  store_part(dgate + i, d * u * silu_slope(g, s), rest);
}

void rope(const float* x, const float* cos, const float* sin, float* y, int64_t start, int64_t end, int64_t heads,
          int64_t size, int64_t half, float direction) {
  const int64_t full = half / LANES * LANES;
  for (int64_t token = start; token < end; ++token) {
    const float *c = cos + token * half, *s = sin + token * half;
    for (int64_t head = 0; head < heads; ++head) {
      const float* in = x + (token * heads + head) * size;
      float* out = y + (token * heads + head) * size;
      for (int64_t i = 0; i < full; i += LANES) {
        const Floats low = load(in + i), high = load(in + half + i), turn = load(s + i) * direction;
        store(out + i, low * load(c + i) - high * turn);
        store(out + half + i, high * load(c + i) + low * turn);
      }
      for (int64_t i = full; i < half; ++i) {
        const float low = in[i], high = in[half + i], turn = direction * s[i];
        out[i] = low * c[i] - high * turn;
        out[half + i] = high * c[i] + low * turn;
      }
      memcpy(out + 2 * half, in + 2 * half, static_cast<size_t>(size - 2 * half) * sizeof(float));
    }
  }
}

INLINE float maximum(const float* values, int64_t count) {
  Floats best = all(-INFINITY);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats v = load(values + i);
    best = v > best ? v : best;
  }
  float top = best[0];
  for (int64_t lane = 1; lane < LANES; ++lane) top = best[lane] > top ? best[lane] : top;
  for (; i < count; ++i) top = values[i] > top ? values[i] : top;
  return top;
}

// values = exp(values · scale - shift) in place; returns their sum.
INLINE float exponentials(float* values, int64_t count, float scale, float shift) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats e = exponential(load(values + i) * scale - shift);
    store(values + i, e);
    sums += e;
  }
  const Floats tail = exponential(load_part(values + i, count - i) * scale - shift);
  store_part(values + i, tail, count - i);
  return sum(sums + load_part(values + i, count - i));
}

INLINE void multiply(float* values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

float softmax(float* scores, int64_t valid, int64_t width, float scale) {
  const float top = maximum(scores, valid) * scale;
  const float total = exponentials(scores, valid, scale, top);
  multiply(scores, valid, 1.0f / total);
  memset(scores + valid, 0, static_cast<size_t>(width - valid) * sizeof(float));
  return logf(total) + top;
}

void softmax_again(float* scores, int64_t valid, int64_t width, float scale, float normaliser) {
  exponentials(scores, valid, scale, normaliser);
  memset(scores + valid, 0, static_cast<size_t>(width - valid) * sizeof(float));
}

void softmax_backward(const float* weights, float* gradient, int64_t count, float shared, float scale) {
  for (int64_t i = 0; i < count; ++i) gradient[i] = weights[i] * (gradient[i] - shared) * scale;
}

float dot(const float* a, const float* b, int64_t count) {
  Floats products = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) products += load(a + i) * load(b + i);
  return sum(products + load_part(a + i, count - i) * load_part(b + i, count - i));
}

void attend(const float* query, const float* keys, const float* values, float* scores, float* out, int64_t queries,
            int64_t size, int64_t count, float scale) {
  for (int64_t key = 0; key < count; ++key)
    for (int64_t q = 0; q < queries; ++q) scores[q * count + key] = dot(query + q * size, keys + key * size, size);
  for (int64_t q = 0; q < queries; ++q) {
    const float* weights = scores + q * count;
    softmax(scores + q * count, count, count, scale);
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
      Floats low = {}, high = {};
      for (int64_t key = 0; key < count; ++key) {
        low += load(values + key * size + i) * weights[key];
        high += load(values + key * size + i + LANES) * weights[key];
      }
      store(out + q * size + i, low);
      store(out + q * size + i + LANES, high);
    }
    for (; i < size; i += LANES) {
      const int64_t part = smaller(LANES, size - i);
      Floats total = {};
      for (int64_t key = 0; key < count; ++key) total += load_part(values + key * size + i, part) * weights[key];
      store_part(out + q * size + i, total, part);
    }
  }
}

float cross_entropy(float* logits, int64_t width, int64_t id, bool gradient) {
  const float wanted = logits[id], top = maximum(logits, width);
  const float total = exponentials(logits, width, 1.0f, top);
  if (gradient) {
    multiply(logits, width, 1.0f / total);
    logits[id] -= 1.0f;
  }
  return logf(total) + top - wanted;
}

// ---- Weights as they lie in a file. The same numbers as in weights/dequantise.rs.

constexpr int64_t PARTS = 16 / LANES;

// 16 neighbouring weights of a row.
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

// One bit of each of 16 weights, the lowest first, as 16 where it is set.
INLINE Bytes fifth_bits(uint32_t bits) {
  const Bytes select = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8_t low = static_cast<uint8_t>(bits), high = static_cast<uint8_t>(bits >> 8);
  const Bytes spread = {low, low, low, low, low, low, low, low, high, high, high, high, high, high, high, high};
  return (Bytes)((spread & select) != 0) & 16;
}

// Scale and minimum, 6 bits each, of group `g` of 8 packed into 12 bytes.
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

// Bytes that weights are fetched ahead of use. The machine's own prefetching ends with each page.
constexpr int64_t AHEAD = 3072;

INLINE int64_t source_row(int64_t row, const Stored& weights) {
  if (weights.heads == 0) return row;
  const int64_t size = weights.rows / weights.heads, within = row % size, half_size = size / 2;
  return row / size * size + 2 * (within % half_size) + within / half_size;
}

// y[m, row] = x[m] · weights[row] for TOKENS neighbouring m and rows [start, end).
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

const Kernels LUTHIER_TABLE = {
    LUTHIER_NAME, rms_norm_forward, rms_norm_backward, swiglu_forward,   swiglu_backward,
    rope,         softmax,          softmax_again,     softmax_backward, dot,
    attend,       cross_entropy,    stored_product,
};

}  // namespace luthier
