// Cross entropy of the softmax of each row of logits, in place. One block for each row.

// The largest of some numbers, and the sum of e^(x - largest) over them.
struct Normaliser {
  float largest, sum;
};

DEVICE Normaliser joined(Normaliser a, Normaliser b) {
  const float largest = fmaxf(a.largest, b.largest);
  // The sum of no numbers is 0. Its factor must not be e to a difference of infinities.
  const float left = a.sum == 0 ? 0 : a.sum * __expf(a.largest - largest);
  const float right = b.sum == 0 ? 0 : b.sum * __expf(b.largest - largest);
  return {largest, left + right};
}

// Reads and writes up to eight elements of a row. Only rows of a multiple of 8 elements lie so that eight can be read
// at once.
template <bool ALIGNED>
struct Part {
  bf16* row;
  i64 start;
  int count;

  DEVICE Part(bf16* row, i64 start, i64 width)
      : row(row), start(start), count(ALIGNED || width - start >= 8 ? 8 : static_cast<int>(width - start)) {}

  DEVICE void read(float* to) const {
    if constexpr (ALIGNED) {
      widen(*reinterpret_cast<const Eight*>(row + start), to);
    } else {
      for (int k = 0; k < 8; ++k) to[k] = k < count ? value(row[start + k]) : 0;
    }
  }

  DEVICE void write(const float* from) const {
    if constexpr (ALIGNED) {
      store_eight(row + start, from);
    } else {
      for (int k = 0; k < count; ++k) store(row + start + k, from[k]);
    }
  }
};

template <bool ALIGNED>
DEVICE void compare(bf16* row, i64 id, float* loss, float* hit, i64 width, int gradient) {
  // A token that is not in the vocabulary has no loss.
  const bool known = id >= 0 && id < width;
  const float own = known ? value(row[id]) : __int_as_float(0x7fc00000);
  const i64 step = 8 * static_cast<i64>(blockDim.x);
  float z[8];
  const float NOTHING = -__int_as_float(0x7f800000);
  Normaliser all = {NOTHING, 0};
  int beaten = 0;
  for (i64 at = 8 * static_cast<i64>(threadIdx.x); at < width; at += step) {
    const Part<ALIGNED> part(row, at, width);
    part.read(z);
    Normaliser own_part = {z[0], 0};
    for (int k = 1; k < 8; ++k) own_part.largest = k < part.count ? fmaxf(own_part.largest, z[k]) : own_part.largest;
    for (int k = 0; k < 8; ++k) {
      if (k >= part.count) break;
      // e^-∞, without the difference of two infinities.
      if (z[k] != NOTHING) own_part.sum += __expf(z[k] - own_part.largest);
      beaten |= at + k < id ? !(z[k] < own) : !(z[k] <= own);
    }
    all = joined(all, own_part);
  }
  __shared__ Normaliser parts[32];
  for (int distance = 16; distance > 0; distance /= 2) {
    const float largest = __shfl_xor_sync(~0u, all.largest, distance);
    all = joined(all, {largest, __shfl_xor_sync(~0u, all.sum, distance)});
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = all;
  beaten = __syncthreads_or(beaten);
  all = parts[0];
  for (u32 i = 1; i < blockDim.x / 32; ++i) all = joined(all, parts[i]);
  const float normaliser = all.largest + logf(all.sum);
  if (threadIdx.x == 0) {
    *loss = normaliser - own;
    *hit = beaten ? 0 : 1;
  }
  if (!gradient) return;
  for (i64 at = 8 * static_cast<i64>(threadIdx.x); at < width; at += step) {
    const Part<ALIGNED> part(row, at, width);
    part.read(z);
    for (int k = 0; k < 8; ++k) z[k] = __expf(z[k] - normaliser) - (at + k == id ? 1 : 0);
    part.write(z);
  }
}

// losses[row] = -log softmax(logits[row])[ids[row]]; hits[row] = 1 if the most likely token is ids[row], the first of
// equal ones, and otherwise 0. With `gradient`, logits become softmax - onehot. A row with NaN or +∞, or without a
// number above -∞, has no finite loss; an id outside the vocabulary gives NaN.
KERNEL(VOCABULARY_THREADS) compare_rows(bf16* logits, const i64* ids, float* losses, float* hits, i64 vocabulary,
                                        int gradient) {
  const i64 index = blockIdx.x;
  bf16* row = logits + index * vocabulary;
  if (vocabulary % 8 == 0) compare<true>(row, ids[index], losses + index, hits + index, vocabulary, gradient);
  else compare<false>(row, ids[index], losses + index, hits + index, vocabulary, gradient);
}
