// llama.cpp's blocks (ggml-common.h): decoding, and products with few tokens. Results equal those of
// weights/dequantise.rs.

// The numbers of kernels.h.
enum Format { Q8_0 = 1, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };

template <int FORMAT>
DEVICE int elements() {
  return FORMAT >= Q4_K ? 256 : 32;
}

template <int FORMAT>
DEVICE int bytes() {
  return FORMAT == Q8_0   ? 34
         : FORMAT == Q4_0 ? 18
         : FORMAT == Q4_1 ? 20
         : FORMAT == Q5_0 ? 22
         : FORMAT == Q5_1 ? 24
         : FORMAT == Q4_K ? 144
         : FORMAT == Q5_K ? 176
                          : 210;
}

// The f16 at an even address.
DEVICE float half_at(const u8* at) { return of_half(*reinterpret_cast<const u16*>(at)); }

// Eight bytes at an even address, four to a word.
struct Bytes {
  u32 words[2];

  DEVICE explicit Bytes(const u8* from) {
    const u16* halves = reinterpret_cast<const u16*>(from);
    for (int i = 0; i < 2; ++i) words[i] = halves[2 * i] | static_cast<u32>(halves[2 * i + 1]) << 16;
  }

  DEVICE u32 operator[](int i) const { return words[i / 4] >> (8 * (i % 4)) & 255; }
};

DEVICE u32 word_at(const u8* at) {
  const u16* halves = reinterpret_cast<const u16*>(at);
  return halves[0] | static_cast<u32>(halves[1]) << 16;
}

// Scale or minimum of group g: 6 bits each in 12 bytes.
DEVICE u32 group_scale(const u8* packed, int g) {
  return g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | packed[g - 4] >> 6 << 4;
}
DEVICE u32 group_minimum(const u8* packed, int g) {
  return g < 4 ? packed[g + 4] & 63 : packed[g + 4] >> 4 | packed[g] >> 6 << 4;
}

// Eight elements of a block from the one with this number, a multiple of 8. Every product and sum is rounded.
template <int FORMAT>
DEVICE void decode_eight(const u8* block, int first, float* out) {
  if (FORMAT == Q8_0) {
    const float scale = half_at(block);
    const Bytes codes(block + 2 + first);
    for (int k = 0; k < 8; ++k) out[k] = __fmul_rn(static_cast<signed char>(codes[k]), scale);
  } else if (FORMAT <= Q5_1) {
    const bool has_minimum = FORMAT == Q4_1 || FORMAT == Q5_1, has_fifth = FORMAT >= Q5_0;
    const float scale = half_at(block), minimum = has_minimum ? half_at(block + 2) : 0;
    const u8* rest = block + (has_minimum ? 4 : 2);
    const u32 fifth = has_fifth ? word_at(rest) >> first : 0;
    const Bytes codes(rest + (has_fifth ? 4 : 0) + first % 16);
    for (int k = 0; k < 8; ++k) {
      const u32 code = (first < 16 ? codes[k] & 15 : codes[k] >> 4) | (fifth >> k & 1) << 4;
      if (has_minimum) out[k] = __fadd_rn(__fmul_rn(code, scale), minimum);
      else out[k] = __fmul_rn(static_cast<int>(code) - (has_fifth ? 16 : 8), scale);
    }
  } else if (FORMAT <= Q5_K) {
    const int g = first / 32, i = first % 32;
    const float scale = __fmul_rn(half_at(block), group_scale(block + 4, g));
    const float minimum = __fmul_rn(half_at(block + 2), group_minimum(block + 4, g));
    const Bytes codes(block + (FORMAT == Q5_K ? 48 : 16) + g / 2 * 32 + i);
    const Bytes fifth(block + 16 + i);
    for (int k = 0; k < 8; ++k) {
      u32 code = g % 2 ? codes[k] >> 4 : codes[k] & 15;
      if (FORMAT == Q5_K) code |= (fifth[k] >> g & 1) << 4;
      out[k] = __fsub_rn(__fmul_rn(scale, code), minimum);
    }
  } else {
    const int part = first / 128, quarter = first % 128 / 32, i = first % 32;
    const float scale = __fmul_rn(half_at(block + 208), static_cast<signed char>(block[192 + first / 16]));
    const Bytes lower(block + part * 64 + quarter % 2 * 32 + i), upper(block + 128 + part * 32 + i);
    for (int k = 0; k < 8; ++k) {
      const u32 code = (quarter < 2 ? lower[k] & 15 : lower[k] >> 4) | (upper[k] >> (2 * quarter) & 3) << 4;
      out[k] = __fmul_rn(static_cast<int>(code) - 32, scale);
    }
  }
}

// Eight elements of a matrix from the one with this number.
template <int FORMAT>
DEVICE void eight_of(const u8* matrix, i64 first, float* out) {
  const i64 block = first / elements<FORMAT>();
  decode_eight<FORMAT>(matrix + block * bytes<FORMAT>(), static_cast<int>(first % elements<FORMAT>()), out);
}

template <int FORMAT, class T>
DEVICE void decode(const u8* matrix, T* out, i64 eights) {
  for (i64 i = first_index(); i < eights; i += all_threads()) {
    float eight[8];
    eight_of<FORMAT>(matrix, 8 * i, eight);
    store_eight(out + 8 * i, eight);
  }
}

template <class T>
DEVICE void decode_any(int format, const u8* matrix, T* out, i64 eights) {
  switch (format) {
    case Q8_0: return decode<Q8_0>(matrix, out, eights);
    case Q4_0: return decode<Q4_0>(matrix, out, eights);
    case Q4_1: return decode<Q4_1>(matrix, out, eights);
    case Q5_0: return decode<Q5_0>(matrix, out, eights);
    case Q5_1: return decode<Q5_1>(matrix, out, eights);
    case Q4_K: return decode<Q4_K>(matrix, out, eights);
    case Q5_K: return decode<Q5_K>(matrix, out, eights);
    case Q6_K: return decode<Q6_K>(matrix, out, eights);
  }
}

KERNEL(ITEM_THREADS) blocks_to_bf16(int format, const u8* matrix, bf16* out, i64 eights) {
  decode_any(format, matrix, out, eights);
}

KERNEL(ITEM_THREADS) blocks_to_f32(int format, const u8* matrix, float* out, i64 eights) {
  decode_any(format, matrix, out, eights);
}

template <int FORMAT, int TOKENS>
DEVICE void multiply(const u8* matrix, const bf16* x, bf16* y, int tokens, int rows, int columns) {
  const auto eight = [=](i64 first, float* out) { eight_of<FORMAT>(matrix, first, out); };
  few_tokens_product<TOKENS>(eight, x, y, tokens, rows, columns);
}

template <int TOKENS>
DEVICE void multiply_any(int format, const u8* matrix, const bf16* x, bf16* y, int tokens, int rows, int columns) {
  switch (format) {
    case Q8_0: return multiply<Q8_0, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q4_0: return multiply<Q4_0, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q4_1: return multiply<Q4_1, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q5_0: return multiply<Q5_0, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q5_1: return multiply<Q5_1, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q4_K: return multiply<Q4_K, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q5_K: return multiply<Q5_K, TOKENS>(matrix, x, y, tokens, rows, columns);
    case Q6_K: return multiply<Q6_K, TOKENS>(matrix, x, y, tokens, rows, columns);
  }
}

KERNEL(ITEM_THREADS) blocks_product_1(int format, const u8* matrix, const bf16* x, bf16* y, int tokens, int rows,
                                      int columns) {
  multiply_any<1>(format, matrix, x, y, tokens, rows, columns);
}

KERNEL(ITEM_THREADS) blocks_product_8(int format, const u8* matrix, const bf16* x, bf16* y, int tokens, int rows,
                                      int columns) {
  multiply_any<8>(format, matrix, x, y, tokens, rows, columns);
}
