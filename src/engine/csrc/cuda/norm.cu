// RMS norm with a frozen weight, bf16; statistics in f32. One block for each row, whose elements lie 8 to a thread and
// step. Rows have a multiple of 8 elements.

// Sum over all threads of a block, in each of them.
DEVICE float block_sum(float x) {
  __shared__ float parts[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (u32 i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
  __syncthreads();
  return sum;
}

// y = weight · x / sqrt(mean(x²) + epsilon), rounded before the product with the weight as well;
// scales[row] = 1 / sqrt(…). With `other`, x becomes x + other first, which is written to `sum`.
KERNEL(NORM_THREADS) rms_norm_forward(const Eight* x, const Eight* other, const Eight* weight, Eight* sum, Eight* y,
                                      float* scales, u32 eights, float epsilon) {
  const i64 start = static_cast<i64>(blockIdx.x) * eights;
  float squares = 0;
  for (u32 i = threadIdx.x; i < eights; i += blockDim.x) {
    float a[8];
    widen(x[start + i], a);
    if (other) {
      float b[8];
      widen(other[start + i], b);
      for (int k = 0; k < 8; ++k) b[k] += a[k];
      // The statistics are those of the sum as it is stored.
      const Eight rounded = narrowed(b);
      sum[start + i] = rounded;
      widen(rounded, a);
    }
    for (int k = 0; k < 8; ++k) squares += a[k] * a[k];
  }
  const float scale = rsqrtf(block_sum(squares) / (8.0f * eights) + epsilon);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  // A thread reads only what it wrote.
  const Eight* from = other ? sum : x;
  for (u32 i = threadIdx.x; i < eights; i += blockDim.x) {
    float a[8], w[8];
    widen(from[start + i], a);
    widen(weight[i], w);
    for (int k = 0; k < 8; ++k) a[k] *= scale;
    widen(narrowed(a), a);
    for (int k = 0; k < 8; ++k) a[k] *= w[k];
    y[start + i] = narrowed(a);
  }
}

// dx = scale · (weight · dy - x · scale² · mean(weight · dy · x)), plus `other` if it is given.
KERNEL(NORM_THREADS) rms_norm_backward(const Eight* x, const Eight* weight, const float* scales, const Eight* dy,
                                       const Eight* other, Eight* dx, u32 eights) {
  const i64 start = static_cast<i64>(blockIdx.x) * eights;
  const float scale = scales[blockIdx.x];
  float product = 0;
  for (u32 i = threadIdx.x; i < eights; i += blockDim.x) {
    float a[8], w[8], d[8];
    widen(x[start + i], a);
    widen(weight[i], w);
    widen(dy[start + i], d);
    for (int k = 0; k < 8; ++k) product += a[k] * w[k] * d[k];
  }
  const float share = block_sum(product) / (8.0f * eights) * scale * scale;
  for (u32 i = threadIdx.x; i < eights; i += blockDim.x) {
    float a[8], w[8], d[8];
    widen(x[start + i], a);
    widen(weight[i], w);
    widen(dy[start + i], d);
    for (int k = 0; k < 8; ++k) a[k] = scale * (w[k] * d[k] - a[k] * share);
    if (other) {
      widen(other[start + i], d);
      for (int k = 0; k < 8; ++k) a[k] += d[k];
    }
    dx[start + i] = narrowed(a);
  }
}
