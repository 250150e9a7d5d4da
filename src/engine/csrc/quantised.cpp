// Decoding of quantised weights, as CPU kernels and as tensor operations for all other devices. Results equal those
// of weights/nf4.rs and weights/dequantise.rs bit for bit.

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <utility>
#include <vector>

#include "kernels.h"
#include "quantised.h"
#include "seam.h"

using at::Tensor;
using luthier::guarded;
using luthier::NF4_BLOCK;
using luthier::NF4_SCALES;

namespace {

// Decodes on the CPU.
class Decoder {
 public:
  explicit Decoder(const luthier_nf4& matrix) : count(matrix.rows * matrix.columns) {
    luthier::check(matrix);
    for (const Tensor* part : {matrix.codes, matrix.scales, matrix.nested, matrix.offset, matrix.pairs, matrix.dynamic})
      TORCH_CHECK(part->device().is_cpu());
    codes = matrix.codes->const_data_ptr<uint8_t>();
    scales = matrix.scales->const_data_ptr<uint8_t>();
    nested = matrix.nested->const_data_ptr<float>();
    offset = *matrix.offset->const_data_ptr<float>();
    pairs = matrix.pairs->const_data_ptr<float>();
    dynamic = matrix.dynamic->const_data_ptr<float>();
  }

  // Writes the elements of blocks [start, end).
  template <class T>
  void decode(int64_t start, int64_t end, T* out) const {
    for (int64_t block = start; block < end; ++block, out += NF4_BLOCK) {
      const float scale = dynamic[scales[block]] * nested[block / NF4_SCALES] + offset;
      const uint8_t* code = codes + block * (NF4_BLOCK / 2);
      const int64_t rest = count - block * NF4_BLOCK;
      if (rest >= NF4_BLOCK) {
        for (int64_t i = 0; i < NF4_BLOCK / 2; ++i) {
          const float* pair = pairs + 2 * code[i];
          out[2 * i] = static_cast<T>(pair[0] * scale);
          out[2 * i + 1] = static_cast<T>(pair[1] * scale);
        }
      } else {
        for (int64_t i = 0; i < rest; ++i) out[i] = static_cast<T>(pairs[2 * code[i / 2] + i % 2] * scale);
      }
    }
  }

 private:
  int64_t count;
  const uint8_t *codes, *scales;
  const float *nested, *pairs, *dynamic;
  float offset;
};

// Decodes on any device.
Tensor look_up(const luthier_nf4& matrix) {
  const int64_t count = matrix.rows * matrix.columns, scales = luthier::blocks(matrix);
  Tensor scale = matrix.dynamic->index_select(0, matrix.scales->to(at::kInt));
  const Tensor nested = matrix.nested->unsqueeze(1).expand({-1, NF4_SCALES}).reshape({-1});
  scale.mul_(nested.narrow(0, 0, scales)).add_(*matrix.offset);
  Tensor values = matrix.pairs->index_select(0, matrix.codes->to(at::kInt)).view({-1});
  const int64_t missing = scales * NF4_BLOCK - values.numel();
  if (missing > 0) values = at::constant_pad_nd(values, {0, missing});
  values.view({scales, NF4_BLOCK}).mul_(scale.unsqueeze(1));
  return values.narrow(0, 0, count).view({matrix.rows, matrix.columns});
}

// Blocks of llama.cpp (ggml-common.h) as tensors; `bytes` is [blocks, bytes of a block].

Tensor part(const Tensor& bytes, int64_t start, int64_t length) { return bytes.narrow(1, start, length); }

// The f16 at byte `at` of every block, [blocks, 1].
Tensor half(const Tensor& bytes, int64_t at) { return part(bytes, at, 2).contiguous().view(at::kHalf).to(at::kFloat); }

Tensor as_signed(const Tensor& bytes) { return bytes.contiguous().view(at::kChar).to(at::kFloat); }

Tensor left(const Tensor& bytes, int64_t bits) { return bytes.bitwise_left_shift(bits); }
Tensor right(const Tensor& bytes, int64_t bits) { return bytes.bitwise_right_shift(bits); }

// 8 shifts that move each bit to the lowest place.
Tensor each_bit(const Tensor& bytes) { return at::arange(8, bytes.options()); }

// The low nibbles of all bytes along dimension 1, then the high nibbles.
Tensor nibbles(const Tensor& bytes) { return at::cat({bytes & 15, right(bytes, 4)}, 1); }

// Fifth bits of 32 elements in 4 bytes, the lowest first, shifted to their place in the code.
Tensor fifth_bits(const Tensor& bytes) {
  return left(bytes.unsqueeze(2).bitwise_right_shift(each_bit(bytes)) & 1, 4).reshape({-1, 32});
}

// Scales and minimums of 8 groups, 6 bits each in 12 bytes, [blocks, 8, 1] each.
std::pair<Tensor, Tensor> group_scales(const Tensor& packed) {
  const Tensor low = part(packed, 0, 4), middle = part(packed, 4, 4), high = part(packed, 8, 4);
  const auto upper = [](const Tensor& x) { return left(right(x, 6), 4); };
  const Tensor scales = at::cat({low & 63, (high & 15) | upper(low)}, 1);
  const Tensor minima = at::cat({middle & 63, right(high, 4) | upper(middle)}, 1);
  return {scales.to(at::kFloat).unsqueeze(2), minima.to(at::kFloat).unsqueeze(2)};
}

// 8 groups of 32 codes, each with its own scale and minimum.
Tensor grouped(const Tensor& bytes, const Tensor& codes) {
  const auto [scales, minima] = group_scales(part(bytes, 4, 12));
  const Tensor scale = half(bytes, 0).unsqueeze(2), minimum = half(bytes, 2).unsqueeze(2);
  return (scale * scales).mul(codes).sub_(minimum * minima);
}

// 128 bytes of 4-bit codes: every 32 bytes have two groups, the low nibbles first.
Tensor paired_groups(const Tensor& bytes) {
  const Tensor fours = bytes.reshape({-1, 4, 32});
  return at::stack({fours & 15, right(fours, 4)}, 2).view({-1, 8, 32});
}

Tensor q6_k(const Tensor& bytes) {
  const Tensor low = part(bytes, 0, 128).reshape({-1, 2, 64}), high = part(bytes, 128, 64).reshape({-1, 2, 32});
  const Tensor first = low.narrow(2, 0, 32), second = low.narrow(2, 32, 32);
  const auto upper = [&](int64_t quarter) { return left(right(high, 2 * quarter) & 3, 4); };
  const Tensor codes = at::stack({(first & 15) | upper(0), (second & 15) | upper(1),
                                  right(first, 4) | upper(2), right(second, 4) | upper(3)},
                                 2);
  const Tensor scales = half(bytes, 208) * as_signed(part(bytes, 192, 16));
  return codes.to(at::kFloat).sub_(32).view({-1, 16, 16}).mul_(scales.unsqueeze(2));
}

// All elements in order. The caller gives them the matrix's shape.
Tensor decode_blocks(luthier::Format format, const Tensor& bytes) {
  switch (format) {
    case luthier::Q8_0:
      return as_signed(part(bytes, 2, 32)).mul_(half(bytes, 0));
    case luthier::Q4_0:
      return nibbles(part(bytes, 2, 16)).to(at::kFloat).sub_(8).mul_(half(bytes, 0));
    case luthier::Q4_1:
      return nibbles(part(bytes, 4, 16)).to(at::kFloat).mul_(half(bytes, 0)).add_(half(bytes, 2));
    case luthier::Q5_0: {
      const Tensor codes = nibbles(part(bytes, 6, 16)) | fifth_bits(part(bytes, 2, 4));
      return codes.to(at::kFloat).sub_(16).mul_(half(bytes, 0));
    }
    case luthier::Q5_1: {
      const Tensor codes = nibbles(part(bytes, 8, 16)) | fifth_bits(part(bytes, 4, 4));
      return codes.to(at::kFloat).mul_(half(bytes, 0)).add_(half(bytes, 2));
    }
    case luthier::Q4_K:
      return grouped(bytes, paired_groups(part(bytes, 16, 128)).to(at::kFloat));
    case luthier::Q5_K: {
      // Bit g of byte i belongs to element i of group g.
      const Tensor fifth = part(bytes, 16, 32).unsqueeze(1).bitwise_right_shift(each_bit(bytes).view({1, 8, 1}));
      const Tensor codes = paired_groups(part(bytes, 48, 128)) | left(fifth & 1, 4);
      return grouped(bytes, codes.to(at::kFloat));
    }
    case luthier::Q6_K:
      return q6_k(bytes);
    case luthier::BF16:
    case luthier::FORMATS:
      break;
  }
  TORCH_CHECK(false, "no blocks");
}

}  // namespace

extern "C" {

// Calls work(owner, i) for every i below count, on the threads of tensor operations.
int luthier_parallel(int64_t count, void (*work)(void*, int64_t), void* owner) {
  return guarded([=] {
    at::parallel_for(0, count, 1, [=](int64_t start, int64_t end) {
      for (int64_t i = start; i < end; ++i) work(owner, i);
    });
  });
}

int luthier_nf4_decode(const luthier_nf4* matrix, int kind, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    const Decoder decoder(*matrix);
    const auto type = static_cast<at::ScalarType>(kind);
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16);
    Tensor dense = at::empty({matrix->rows, matrix->columns}, matrix->codes->options().dtype(type));
    at::parallel_for(0, luthier::blocks(*matrix), 64, [&](int64_t start, int64_t end) {
      if (type == at::kFloat)
        decoder.decode(start, end, dense.data_ptr<float>() + start * NF4_BLOCK);
      else
        decoder.decode(start, end, dense.data_ptr<at::BFloat16>() + start * NF4_BLOCK);
    });
    *out = new Tensor(dense);
  });
}

int luthier_nf4_look_up(const luthier_nf4* matrix, int kind, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    luthier::check(*matrix);
    *out = new Tensor(look_up(*matrix).to(static_cast<at::ScalarType>(kind)));
  });
}

// x [tokens, columns] times the transpose of the matrix, for few tokens on the CPU: each row is decoded just before
// its dot products, so that these read it from the cache. Rows have whole blocks. No gradient.
int luthier_nf4_product(Tensor* x, const luthier_nf4* matrix, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    const Decoder decoder(*matrix);
    const int64_t rows = matrix->rows, columns = matrix->columns, each = columns / NF4_BLOCK;
    TORCH_CHECK(x->device().is_cpu() && x->scalar_type() == at::kFloat && x->is_contiguous() && x->dim() == 2);
    TORCH_CHECK(x->size(1) == columns && columns % NF4_BLOCK == 0);
    Tensor y = at::empty({x->size(0), rows}, x->options());
    const float* input = x->const_data_ptr<float>();
    float* output = y.data_ptr<float>();
    at::parallel_for(0, rows, 16, [&](int64_t start, int64_t end) {
      std::vector<float> weights(columns);
      for (int64_t row = start; row < end; ++row) {
        decoder.decode(row * each, (row + 1) * each, weights.data());
        luthier::typed_kernels<float>().rows_product(input, weights.data(), output + row, x->size(0), columns, rows, 0, 1);
      }
    });
    *out = new Tensor(y);
  });
}

// Decodes a matrix [rows, columns] from `bytes`, uint8, blocks of llama.cpp, by tensor operations on the device of
// `bytes`.
int luthier_blocks_decode(Tensor* bytes, int format, int64_t rows, int64_t columns, int kind, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    luthier::check_blocks(*bytes, format, rows, columns);
    const Tensor each = bytes->view({-1, luthier::BLOCK_BYTES[format]});
    const Tensor dense = decode_blocks(static_cast<luthier::Format>(format), each);
    *out = new Tensor(dense.view({rows, columns}).to(static_cast<at::ScalarType>(kind)));
  });
}

}  // extern "C"
