// Matrices that are kept quantised.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels.h"

extern "C" {

// [rows, columns] in the encoding of weights/nf4.rs, with its decoding tables, all on one device.
struct luthier_nf4 {
  const at::Tensor *codes, *scales;    // uint8: two elements per byte; one per 64 elements
  const at::Tensor *nested, *offset;   // float: one per 256 scales; one number
  const at::Tensor *pairs, *dynamic;   // float: [256, 2], the two elements of every byte; [256], the scales' values
  int64_t rows, columns;
};

}  // extern "C"

namespace luthier {

constexpr int64_t NF4_BLOCK = 64, NF4_SCALES = 256;

inline int64_t blocks(const luthier_nf4& matrix) { return (matrix.rows * matrix.columns + NF4_BLOCK - 1) / NF4_BLOCK; }

inline void check(const luthier_nf4& matrix) {
  const int64_t count = matrix.rows * matrix.columns, scales = blocks(matrix);
  const auto holds = [](const at::Tensor& x, at::ScalarType type, int64_t elements) {
    return x.scalar_type() == type && x.is_contiguous() && x.numel() == elements;
  };
  TORCH_CHECK(matrix.rows >= 0 && matrix.columns >= 0);
  TORCH_CHECK(holds(*matrix.codes, at::kByte, (count + 1) / 2) && holds(*matrix.scales, at::kByte, scales));
  TORCH_CHECK(holds(*matrix.nested, at::kFloat, (scales + NF4_SCALES - 1) / NF4_SCALES));
  TORCH_CHECK(holds(*matrix.offset, at::kFloat, 1) && holds(*matrix.pairs, at::kFloat, 512));
  TORCH_CHECK(holds(*matrix.dynamic, at::kFloat, 256));
}

// `bytes` are the blocks of llama.cpp of a matrix [rows, columns].
inline void check_blocks(const at::Tensor& bytes, int format, int64_t rows, int64_t columns) {
  TORCH_CHECK(format > BF16 && format < FORMATS && columns % BLOCK_ELEMENTS[format] == 0);
  TORCH_CHECK(bytes.scalar_type() == at::kByte && bytes.is_contiguous() && rows >= 0);
  TORCH_CHECK(bytes.numel() == rows * (columns / BLOCK_ELEMENTS[format]) * BLOCK_BYTES[format]);
}

}  // namespace luthier
