// CPU kernels in f32 that ATen would run as several passes over memory, or does not have. No torch in here: plain
// pointers and ranges, so that callers decide how work is split. kernels.cpp is compiled once for every instruction set
// below; kernels() is the best of them that this machine has.
#pragma once

#include <stdlib.h>
#include <string.h>

#include <cstdint>

namespace luthier {

// A matrix [rows, columns] as it lies in a file.
struct Stored {
  const uint8_t* bytes;
  int64_t rows, columns;
  // Heads whose rotary rows lie interleaved in the file (RopePermutation in luthier-core); 0 for none.
  int64_t heads;
};

// Encodings of a stored matrix, numbered as in csrc.rs; elements and bytes of their blocks as in ggml-common.h.
enum Format { BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, FORMATS };
constexpr int64_t BLOCK_ELEMENTS[FORMATS] = {32, 32, 32, 32, 32, 32, 256, 256, 256};
constexpr int64_t BLOCK_BYTES[FORMATS] = {64, 34, 18, 20, 22, 24, 144, 176, 210};

struct Kernels {
  const char* instructions;

  // y = weight · x / sqrt(mean(x²) + epsilon) for rows [start, end) of [·, width]; scales[row] = 1 / sqrt(…).
  void (*rms_norm_forward)(const float* x, const float* weight, float* y, float* scales, int64_t start, int64_t end,
                           int64_t width, float epsilon);
  void (*rms_norm_backward)(const float* x, const float* weight, const float* scales, const float* dy, float* dx,
                            int64_t start, int64_t end, int64_t width);

  // y = silu(gate) · up for `count` elements.
  void (*swiglu_forward)(const float* gate, const float* up, float* y, int64_t count);
  void (*swiglu_backward)(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count);

  // Rotates the first 2 · half dimensions of every head of tokens [start, end) of [·, heads, size]; cos and sin are
  // [·, half]. direction 1 turns forward, -1 back.
  void (*rope)(const float* x, const float* cos, const float* sin, float* y, int64_t start, int64_t end, int64_t heads,
               int64_t size, int64_t half, float direction);

  // Softmax of the first `valid` of `width` scores times `scale`, in place, the others 0. Returns the logarithm of its
  // denominator.
  float (*softmax)(float* scores, int64_t valid, int64_t width, float scale);
  // The same softmax once that logarithm is known.
  void (*softmax_again)(float* scores, int64_t valid, int64_t width, float scale, float normaliser);
  // gradient = weights · (gradient - shared) · scale, in place: back through a softmax.
  void (*softmax_backward)(const float* weights, float* gradient, int64_t count, float shared, float scale);

  float (*dot)(const float* a, const float* b, int64_t count);

  // out [queries, size] = softmax(scale · query · keysᵀ) · values for keys and values [count, size]; scores is room for
  // queries · count.
  void (*attend)(const float* query, const float* keys, const float* values, float* scores, float* out, int64_t queries,
                 int64_t size, int64_t count, float scale);

  // Cross entropy of one row of logits against `id`; logits become softmax - onehot where `gradient` asks for it, and
  // nothing of use elsewhere.
  float (*cross_entropy)(float* logits, int64_t width, int64_t id, bool gradient);

  // y [tokens, rows] = x [tokens, columns] · weightsᵀ for rows [start, end).
  void (*stored_product)(Format format, const Stored& weights, const float* x, float* y, int64_t tokens, int64_t start,
                         int64_t end);
};

extern const Kernels kernels_base;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

// The best for this machine, or what LUTHIER_INSTRUCTIONS names, for tests and comparisons.
inline const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* wanted = getenv("LUTHIER_INSTRUCTIONS");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && (!wanted || !strcmp(wanted, kernels_avx512.instructions))) return kernels_avx512;
    if (avx2 && (!wanted || strcmp(wanted, kernels_base.instructions))) return kernels_avx2;
#endif
    return kernels_base;
  }();
  return chosen;
}

}  // namespace luthier
