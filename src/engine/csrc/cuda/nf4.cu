// NF4 with double quantisation (weights/nf4.rs): encoding, decoding, and products with few tokens. A matrix is one row
// of elements.

// The value of each code, and of each scale, from the tables of weights/quantised.rs.
struct Tables {
  float levels[16], dynamic[256];
};

// Called by all threads of a block.
DEVICE void load(Tables* tables, const float* pairs, const float* dynamic) {
  for (u32 i = threadIdx.x; i < 256; i += blockDim.x) {
    tables->dynamic[i] = dynamic[i];
    // The first of byte i's two elements has its upper half as its code.
    if (i % 16 == 0) tables->levels[i / 16] = pairs[2 * i];
  }
  __syncthreads();
}

struct Matrix {
  const u8 *codes, *scales;
  const float *nested, *offset;
};

// The scale of a block of 64 elements, rounded like on the processor.
DEVICE float scale_of(const Matrix& matrix, const Tables& tables, i64 block) {
  return __fadd_rn(__fmul_rn(tables.dynamic[matrix.scales[block]], matrix.nested[block / 256]), *matrix.offset);
}

// Eight elements from the one with this number, a multiple of 8.
DEVICE void decode_eight(const Matrix& matrix, const Tables& tables, i64 first, float* out) {
  const float scale = scale_of(matrix, tables, first / 64);
  const u32 codes = *reinterpret_cast<const u32*>(matrix.codes + first / 2);
  for (int i = 0; i < 4; ++i) {
    const u32 both = codes >> (8 * i) & 255;
    out[2 * i] = __fmul_rn(tables.levels[both >> 4], scale);
    out[2 * i + 1] = __fmul_rn(tables.levels[both & 15], scale);
  }
}

template <class T>
DEVICE void decode(const Matrix& matrix, const float* pairs, const float* dynamic, T* out, i64 count) {
  __shared__ Tables tables;
  load(&tables, pairs, dynamic);
  for (i64 i = first_index(); i < (count + 7) / 8; i += all_threads()) {
    const i64 first = 8 * i;
    if (first + 8 <= count) {
      float eight[8];
      decode_eight(matrix, tables, first, eight);
      store_eight(out + first, eight);
      continue;
    }
    const float scale = scale_of(matrix, tables, first / 64);
    for (i64 at = first; at < count; ++at) {
      const u32 both = matrix.codes[at / 2];
      store(out + at, __fmul_rn(tables.levels[at % 2 ? both & 15 : both >> 4], scale));
    }
  }
}

KERNEL(ITEM_THREADS) nf4_to_bf16(const u8* codes, const u8* scales, const float* nested, const float* offset,
                                 const float* pairs, const float* dynamic, bf16* out, i64 count) {
  decode({codes, scales, nested, offset}, pairs, dynamic, out, count);
}

KERNEL(ITEM_THREADS) nf4_to_f32(const u8* codes, const u8* scales, const float* nested, const float* offset,
                                const float* pairs, const float* dynamic, float* out, i64 count) {
  decode({codes, scales, nested, offset}, pairs, dynamic, out, count);
}

// For up to TOKENS tokens. Rows have a multiple of 8 elements.
template <int TOKENS>
DEVICE void multiply(const Matrix& matrix, const float* pairs, const float* dynamic, const bf16* x, bf16* y, int tokens,
                     int rows, int columns) {
  __shared__ Tables tables;
  load(&tables, pairs, dynamic);
  const auto eight = [&](i64 first, float* out) { decode_eight(matrix, tables, first, out); };
  few_tokens_product<TOKENS>(eight, x, y, tokens, rows, columns);
}

KERNEL(ITEM_THREADS) nf4_product_1(const u8* codes, const u8* scales, const float* nested, const float* offset,
                                   const float* pairs, const float* dynamic, const bf16* x, bf16* y, int tokens,
                                   int rows, int columns) {
  multiply<1>({codes, scales, nested, offset}, pairs, dynamic, x, y, tokens, rows, columns);
}

KERNEL(ITEM_THREADS) nf4_product_8(const u8* codes, const u8* scales, const float* nested, const float* offset,
                                   const float* pairs, const float* dynamic, const bf16* x, bf16* y, int tokens,
                                   int rows, int columns) {
  multiply<8>({codes, scales, nested, offset}, pairs, dynamic, x, y, tokens, rows, columns);
}

// The codes of `count` elements, and the largest magnitude of each 64. A warp for each 64 elements, two for each thread.
// bounds [15] are the midpoints between levels; a value at one gets the level below. zero is the code of elements
// beyond the last.
KERNEL(ITEM_THREADS) nf4_encode(const float* values, const float* bounds, u8* codes, float* largest, i64 count,
                                float smallest, int zero) {
  const i64 blocks = (count + 63) / 64;
  const int lane = threadIdx.x % 32;
  for (i64 block = first_index() / 32; block < blocks; block += all_threads() / 32) {
    const i64 at = block * 64 + 2 * lane;
    const float first = at < count ? values[at] : 0, second = at + 1 < count ? values[at + 1] : 0;
    // Without the sign, the bits of floats have the same order as the floats, and NaN comes last.
    u32 bits = max(__float_as_uint(first) & 0x7fffffffu, __float_as_uint(second) & 0x7fffffffu);
    for (int distance = 16; distance > 0; distance /= 2) bits = max(bits, __shfl_xor_sync(~0u, bits, distance));
    const float magnitude = __uint_as_float(bits), divisor = fmaxf(magnitude, smallest);
    // bitsandbytes divides in a last block that is not full, and multiplies by the inverse in all others.
    const bool full = block * 64 + 64 <= count;
    const float inverse = __fdiv_rn(1, divisor);
    const float pair[2] = {full ? __fmul_rn(first, inverse) : __fdiv_rn(first, divisor),
                           full ? __fmul_rn(second, inverse) : __fdiv_rn(second, divisor)};
    int levels[2];
    for (int k = 0; k < 2; ++k) {
      levels[k] = 0;
      for (int i = 0; i < 15; ++i) levels[k] += bounds[i] < pair[k];
      if (at + k >= count) levels[k] = zero;
    }
    if (at < count) codes[at / 2] = static_cast<u8>(levels[0] << 4 | levels[1]);
    if (lane == 0) largest[block] = magnitude;
  }
}
