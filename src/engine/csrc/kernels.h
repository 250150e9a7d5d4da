// CPU kernels for operations that ATen splits into several passes over memory, runs more slowly, or does not have.
// No torch in this file: plain pointers and ranges, so that callers decide how to split the work. kernels.cpp is
// compiled once for each instruction set below; kernels() returns the best one for this machine.
//
// Kernels exist for f32 and bf16. In bf16 they compute in f32 and round where PyTorch's operations store a result.
#pragma once

#include <stdlib.h>
#include <string.h>

#include <cstdint>

namespace luthier {

// The upper half of a float.
struct bf16 {
  uint16_t bits;
};

// Unit of a product's summed dimension: one f32 number, or two consecutive bf16 numbers.
typedef int32_t Unit;

// out [rows, columns] (+)= scale · left [rows, depth] · right [depth, columns].
template <class T>
struct Product {
  int64_t rows, columns, depth;
  // Unit u of row i is left[i · left_row + u · left_step].
  const Unit* left;
  int64_t left_row, left_step;
  // right(l, j) is right[l · right_row + j], or right[j · right_row + l] if each column is a row of memory.
  const T* right;
  int64_t right_row;
  bool right_by_rows;
  // One of the two is set.
  T* out;
  float* total;
  int64_t out_row;
  float scale;
  bool add;
  // A second pair of operands, whose product is added: rows of `more_depth` units, and a right operand in either
  // layout. 0 if there is none.
  int64_t more_depth;
  const Unit* more_left;
  int64_t more_left_row;
  const T* more_right;
  int64_t more_right_row;
  bool more_right_by_rows;
};

// How a product can be split into tasks.
struct ProductShape {
  // Panels of columns.
  int64_t panels;
  // Tasks should have a multiple of this many rows.
  int64_t rows;
  // Whether tasks should take several panels, and then a limited number of rows.
  bool deep;
  // Scratch memory of a task, in units: `space`, plus `space_per_row` for each row, per panel if it is deep,
  // otherwise for `rows` rows only.
  int64_t space, space_per_row;
};

// One head of one document, with keys and values [length, size] and the given distance between rows. The first
// `before` tokens have no queries. The queries of the others, [length - before, size], gradients and results have
// the queries' row layout.
template <class T>
struct Head {
  const T *query, *key, *value;
  int64_t query_row, key_row, before, length, size;
  float scale;
};

// A matrix [rows, columns] as stored in a file.
struct Stored {
  const uint8_t* bytes;
  int64_t rows, columns;
  // Heads whose rotary rows are interleaved in the file (Arrangement::RotaryPairs in luthier-core); 0 for none.
  int64_t heads;
};

// Encodings of a stored matrix, numbered as in quantised.rs; elements and bytes of their blocks as in ggml-common.h.
enum Format { BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, FORMATS };
constexpr int64_t BLOCK_ELEMENTS[FORMATS] = {32, 32, 32, 32, 32, 32, 256, 256, 256};
constexpr int64_t BLOCK_BYTES[FORMATS] = {64, 34, 18, 20, 22, 24, 144, 176, 210};

// Kernels of one element type. `space` is scratch memory; the function next to it gives its size in units.
template <class T>
struct Typed {
  void (*widen)(const T* from, float* to, int64_t count);
  void (*narrow)(const float* from, T* to, int64_t count);

  // y = weight · x / sqrt(mean(x²) + epsilon) for rows [start, end) of [·, width]; scales[row] = 1 / sqrt(…).
  void (*rms_norm_forward)(const T* x, const T* weight, T* y, float* scales, int64_t start, int64_t end, int64_t width,
                           float epsilon);
  void (*rms_norm_backward)(const T* x, const T* weight, const float* scales, const T* dy, T* dx, int64_t start,
                            int64_t end, int64_t width);

  // y = silu(gate) · up for `count` elements.
  void (*swiglu_forward)(const T* gate, const T* up, T* y, int64_t count);
  void (*swiglu_backward)(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t count);

  // Rotates the first 2 · half dimensions of every head of tokens [start, end) of [·, heads, size]; cos and sin are
  // [·, half]. direction is 1 for forward rotation, -1 for the inverse.
  void (*rope)(const T* x, const T* cos, const T* sin, T* y, int64_t start, int64_t end, int64_t heads, int64_t size,
               int64_t half, float direction);

  // Cross entropy of one row of logits against `id`. With `gradient`, the logits become softmax - onehot.
  float (*cross_entropy)(T* logits, int64_t width, int64_t id, bool gradient);

  // A product is split into tasks: rows [first, last) of some panels of its columns.
  ProductShape (*product_shape)(const Product<T>& product);
  void (*product)(const Product<T>& product, int64_t first_panel, int64_t last_panel, int64_t first, int64_t last,
                  Unit* space);
  // Packs the left operand of a product with the transpose of `from` [depth, rows], with the given distance between
  // rows: unit u of row i is out[u · rows + i], for units [start, end).
  void (*pack_left)(const T* from, int64_t row, int64_t depth, int64_t rows, Unit* out, int64_t start, int64_t end);

  // y [tokens, rows] = x [tokens, columns] · weightᵀ for rows [start, end): for few tokens.
  void (*rows_product)(const float* x, const T* weight, T* y, int64_t tokens, int64_t columns, int64_t rows,
                       int64_t start, int64_t end);

  // Packs keys and values of all heads of a group in the order in which attention's products read them.
  int64_t (*attention_packed)(int64_t length, int64_t size, bool backward);
  void (*attention_pack)(const Head<T>& head, bool backward, Unit* to);
  // Queries of tokens [first, last) of one head. normalisers are the logarithms of the softmax's denominators,
  // `heads` apart.
  int64_t (*attention_forward_space)(int64_t length, int64_t size);
  void (*attention_forward)(const Head<T>& head, const Unit* packed, int64_t first, int64_t last, T* out,
                            float* normalisers, int64_t heads, Unit* space);
  // All queries of one head. dkey and dvalue are this head's part for all its tokens.
  int64_t (*attention_backward_space)(int64_t length, int64_t size);
  void (*attention_backward)(const Head<T>& head, const Unit* packed, const T* out, const T* dout,
                             const float* normalisers, int64_t heads, T* dquery, float* dkey, float* dvalue,
                             Unit* space);

  // out [queries, size] = softmax(scale · query · keysᵀ) · values for keys and values [count, size]. scores has
  // room for queries · count numbers.
  void (*attend)(const T* query, const T* keys, const T* values, float* scores, T* out, int64_t queries, int64_t size,
                 int64_t count, float scale);
};

struct Kernels {
  const char* instructions;
  Typed<float> f32;
  Typed<bf16> half;

  // y [tokens, rows] = x [tokens, columns] · weightsᵀ for rows [start, end).
  void (*stored_product)(Format format, const Stored& weights, const float* x, float* y, int64_t tokens, int64_t start,
                         int64_t end);
};

extern const Kernels kernels_base;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16;
#endif

// The best kernels for this machine, or those that LUTHIER_INSTRUCTIONS names, for tests and comparisons.
inline const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* wanted = getenv("LUTHIER_INSTRUCTIONS");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (bf16 && (!wanted || !strcmp(wanted, kernels_avx512_bf16.instructions))) return kernels_avx512_bf16;
    if (avx512 && (!wanted || !strcmp(wanted, kernels_avx512.instructions))) return kernels_avx512;
    if (avx2 && (!wanted || strcmp(wanted, kernels_base.instructions))) return kernels_avx2;
#endif
    return kernels_base;
  }();
  return chosen;
}

template <class T>
const Typed<T>& typed_kernels();

template <>
inline const Typed<float>& typed_kernels<float>() {
  return kernels().f32;
}

template <>
inline const Typed<bf16>& typed_kernels<bf16>() {
  return kernels().half;
}

}  // namespace luthier
