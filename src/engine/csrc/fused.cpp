// Operations that one kernel of cuda/ computes, with their gradients. The kernels take contiguous tensors. Rust asks for
// them only on a device on which they were seen to work (cuda.rs).

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "fused.h"
#include "kernels.h"
#include "launch.h"
#include "quantised.h"
#include "seam.h"

using at::Tensor;
using luthier::for_each;
using luthier::Grid;
using luthier::guarded;
using luthier::Kernel;
using luthier::launch;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

void* written(const Tensor& x) { return x.mutable_data_ptr(); }
const void* seen(const Tensor& x) { return x.const_data_ptr(); }
// Of a tensor or of none.
const void* maybe(const std::optional<Tensor>& x) { return x && x->defined() ? x->const_data_ptr() : nullptr; }

bool is_aligned(const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0; }

// As csrc::in_eights.
bool in_eights(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && x.is_contiguous() && x.dim() > 0 && x.size(-1) % 8 == 0 && x.numel() > 0 &&
         is_aligned(x);
}

// A gradient as the kernels read it: contiguous, from an address that is a multiple of 16 bytes.
Tensor readable(const Tensor& gradient) {
  const Tensor x = gradient.contiguous();
  return is_aligned(x) ? x : x.clone();
}

// silu(gate) · up, saving only its operands.
struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    return luthier::gated(gate, up);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], dy = readable(gradients[0]);
    const Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
    const int64_t eights = gate.numel() / 8;
    launch(Kernel::swiglu_backward, gate, for_each(eights), seen(gate), seen(up), seen(dy), written(dgate),
           written(dup), eights);
    return {dgate, dup};
  }
};

// Rotary embedding of [N, heads, size] by cos and sin [N, half].
struct Rope : torch::autograd::Function<Rope> {
  static Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, float direction) {
    const Tensor y = at::empty_like(x);
    const auto heads = static_cast<unsigned>(x.size(1)), size = static_cast<unsigned>(x.size(2));
    const auto half = static_cast<unsigned>(cos.numel() / x.size(0));
    const int64_t items = x.size(0) * heads * ((size - half) / 8);
    launch(Kernel::rope, x, for_each(items), seen(x), seen(cos), seen(sin), written(y), static_cast<unsigned>(items),
           heads, size, half, direction);
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turned(x, cos, sin, 1);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    return {turned(readable(gradients[0]), saved[0], saved[1], -1), Tensor(), Tensor()};
  }
};

// weight · x / sqrt(mean(x²) + epsilon) of x + other, or of x if there is no other, with a frozen weight. Returns
// {norm, x + other}, or {norm} without `other`.
struct AddNorm : torch::autograd::Function<AddNorm> {
  static Grid grid(const Tensor& x) {
    const int64_t eights = x.size(-1) / 8;
    // Whole warps.
    const int64_t threads = std::clamp<int64_t>((eights + 31) / 32 * 32, 32, NORM_THREADS);
    return {static_cast<unsigned>(x.numel() / x.size(-1)), static_cast<unsigned>(threads)};
  }

  // The other comes last, because autograd does not count one that is missing.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double epsilon,
                               const std::optional<Tensor>& other) {
    const Tensor sum = other ? at::empty_like(x) : x, y = at::empty_like(x);
    const Tensor scales = at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat));
    launch(Kernel::rms_norm_forward, x, grid(x), seen(x), maybe(other), seen(weight),
           other ? written(sum) : nullptr, written(y), written(scales),
           static_cast<unsigned>(x.size(-1) / 8), static_cast<float>(epsilon));
    ctx->save_for_backward({sum, weight, scales});
    ctx->saved_data["other"] = other.has_value();
    ctx->set_materialize_grads(false);
    if (!other) return {y};
    return {y, sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &scales = saved[2];
    const bool has_other = ctx->saved_data["other"].toBool();
    const Tensor more = has_other && gradients[1].defined() ? readable(gradients[1]) : Tensor();
    Tensor dx = more;
    if (gradients[0].defined()) {
      const Tensor dy = readable(gradients[0]);
      dx = at::empty_like(x);
      launch(Kernel::rms_norm_backward, x, grid(x), seen(x), seen(weight), seen(scales), seen(dy), maybe(more),
             written(dx), static_cast<unsigned>(x.size(-1) / 8));
    }
    return {dx, Tensor(), Tensor(), has_other ? dx : Tensor()};
  }
};

// The arguments of an NF4 matrix, with more after them.
template <class... A>
void with_matrix(Kernel kernel, const luthier_nf4& matrix, Grid grid, A... more) {
  launch(kernel, *matrix.codes, grid, seen(*matrix.codes), seen(*matrix.scales), seen(*matrix.nested),
         seen(*matrix.offset), seen(*matrix.pairs), seen(*matrix.dynamic), more...);
}

// A warp for each row.
Grid for_rows(int64_t rows) {
  constexpr int64_t WARPS = ITEM_THREADS / 32;
  return {static_cast<unsigned>((rows + WARPS - 1) / WARPS), ITEM_THREADS};
}

void check_few(const Tensor& x, int64_t rows, int64_t columns) {
  TORCH_CHECK(in_eights(x) && x.dim() == 2 && x.size(1) == columns && x.size(0) <= 8);
  TORCH_CHECK(rows > 0 && rows < std::numeric_limits<int>::max() && columns < std::numeric_limits<int>::max());
}

}  // namespace

Tensor luthier::gated(const Tensor& gate, const Tensor& up) {
  const Tensor y = at::empty_like(gate, gate.options().requires_grad(false));
  const int64_t eights = gate.numel() / 8;
  launch(Kernel::swiglu_forward, gate, for_each(eights), seen(gate), seen(up), written(y), eights);
  return y;
}

bool luthier::takes_adamw(const Tensor& gradient, const Trained& trained) {
  const auto whole = [&](const Tensor& x, at::ScalarType type) {
    return x.scalar_type() == type && x.is_contiguous() && is_aligned(x) && x.sizes() == gradient.sizes();
  };
  return gradient.numel() % 8 == 0 && gradient.numel() > 0 &&
         (whole(gradient, at::kBFloat16) || whole(gradient, at::kFloat)) && whole(trained.parameter, at::kFloat) &&
         whole(trained.first, at::kFloat) && whole(trained.second, at::kFloat) && whole(trained.working, at::kBFloat16);
}

void luthier::fused_adamw(const Tensor& gradient, const Trained& trained, const Tensor& scale, const Tensor& left_out,
                          const AdamW& settings) {
  AdamWSettings given;
  given.learning_rate = static_cast<float>(settings.learning_rate);
  given.beta1 = static_cast<float>(settings.beta1);
  given.beta2 = static_cast<float>(settings.beta2);
  given.rest1 = static_cast<float>(1 - settings.beta1);
  given.rest2 = static_cast<float>(1 - settings.beta2);
  given.log_beta1 = static_cast<float>(std::log(settings.beta1));
  given.log_beta2 = static_cast<float>(std::log(settings.beta2));
  given.weight_decay = static_cast<float>(settings.weight_decay);
  given.epsilon = static_cast<float>(settings.epsilon);
  const auto number = [](const Tensor& x) { return x.scalar_type() == at::kFloat && x.numel() == 1; };
  TORCH_CHECK(takes_adamw(gradient, trained) && number(trained.step) && number(left_out));
  TORCH_CHECK(!scale.defined() || number(scale));
  const int64_t eights = gradient.numel() / 8;
  launch(gradient.scalar_type() == at::kFloat ? Kernel::adamw_by_f32 : Kernel::adamw_by_bf16, gradient,
         for_each(eights), seen(gradient), written(trained.parameter), written(trained.first), written(trained.second),
         written(trained.working), seen(trained.step), scale.defined() ? seen(scale) : nullptr, seen(left_out), eights,
         given);
}

extern "C" {

int luthier_fused_swiglu(Tensor* gate, Tensor* up, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(in_eights(*gate) && in_eights(*up) && gate->sizes() == up->sizes());
    *out = new Tensor(SwiGlu::apply(*gate, *up));
  });
}

int luthier_fused_rope(Tensor* x, Tensor* cos, Tensor* sin, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(in_eights(*x) && in_eights(*cos) && in_eights(*sin) && x->dim() == 3);
    TORCH_CHECK(cos->sizes() == sin->sizes() && cos->size(-1) * x->size(0) == cos->numel());
    TORCH_CHECK(2 * cos->size(-1) <= x->size(2) && x->numel() <= std::numeric_limits<unsigned>::max());
    *out = new Tensor(Rope::apply(*x, *cos, *sin));
  });
}

// Queries [N, heads, size] and keys [N, groups, size] rotated by cos and sin [N, …, half]; keys and values are written to
// a cache's, [B, groups, capacity, size]: those of token t of a row, of N / B, at places [B, N / B], int64, or at start + t
// if places is null. No gradient.
int luthier_fused_rope_into_cache(Tensor* query, Tensor* key, Tensor* value, Tensor* cos, Tensor* sin, Tensor* keys,
                                  Tensor* values, Tensor* places, int64_t start, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    NewTokens tokens = {};
    for (const Tensor* x : {query, key, value, cos, sin, keys, values}) TORCH_CHECK(in_eights(*x));
    TORCH_CHECK(query->dim() == 3 && key->dim() == 3 && key->sizes() == value->sizes());
    TORCH_CHECK(keys->dim() == 4 && keys->sizes() == values->sizes());
    const int64_t count = query->size(0), rows = keys->size(0), half = cos->size(-1);
    const int64_t heads = query->size(1), groups = key->size(1), size = query->size(2), width = count / rows;
    TORCH_CHECK(key->size(0) == count && key->size(2) == size && width * rows == count);
    TORCH_CHECK(keys->size(1) == groups && keys->size(3) == size);
    TORCH_CHECK(cos->sizes() == sin->sizes() && half * count == cos->numel() && 2 * half <= size);
    TORCH_CHECK(query->numel() + 2 * key->numel() <= std::numeric_limits<unsigned>::max());
    tokens.width = static_cast<unsigned>(width);
    tokens.heads = static_cast<unsigned>(heads);
    tokens.groups = static_cast<unsigned>(groups);
    tokens.size = static_cast<unsigned>(size);
    tokens.half = static_cast<unsigned>(half);
    tokens.capacity = keys->size(2);
    if (places != nullptr) {
      TORCH_CHECK(places->scalar_type() == at::kLong && places->dim() == 2 && places->size(0) == rows);
      TORCH_CHECK(places->size(1) == width && (width == 1 || places->stride(1) == 1));
      tokens.places = seen(*places);
      tokens.stride = places->stride(0);
    } else {
      TORCH_CHECK(start >= 0 && start + width <= tokens.capacity);
      tokens.start = start;
    }
    const int64_t items = count * ((heads + groups) * ((size - half) / 8) + groups * (size / 8));
    const Tensor y = at::empty_like(*query);
    launch(Kernel::rope_into_cache, *query, for_each(items), seen(*query), seen(*key), seen(*value), seen(*cos),
           seen(*sin), written(y), written(*keys), written(*values), static_cast<unsigned>(items), tokens);
    *out = new Tensor(y);
  });
}

// `other` and `sum` are null together.
int luthier_fused_add_norm(Tensor* x, Tensor* other, Tensor* weight, double epsilon, Tensor** sum, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(in_eights(*x) && in_eights(*weight) && weight->numel() == x->size(-1) && !weight->requires_grad());
    TORCH_CHECK(x->numel() / x->size(-1) <= std::numeric_limits<int>::max());
    TORCH_CHECK(other == nullptr || (in_eights(*other) && other->sizes() == x->sizes()));
    const auto result = AddNorm::apply(*x, *weight, epsilon, other ? std::optional<Tensor>(*other) : std::nullopt);
    *out = new Tensor(result[0]);
    if (other) *sum = new Tensor(result[1]);
  });
}

int luthier_fused_nf4_decode(const luthier_nf4* matrix, int kind, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    luthier::check(*matrix);
    const auto type = static_cast<at::ScalarType>(kind);
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16);
    const int64_t count = matrix->rows * matrix->columns;
    const Tensor dense = at::empty({matrix->rows, matrix->columns}, matrix->codes->options().dtype(type));
    if (count > 0)
      with_matrix(type == at::kFloat ? Kernel::nf4_to_f32 : Kernel::nf4_to_bf16, *matrix, for_each((count + 7) / 8),
                  written(dense), count);
    *out = new Tensor(dense);
  });
}

// x [tokens, columns] times the transpose of the matrix, for up to 8 tokens. No gradient.
int luthier_fused_nf4_product(Tensor* x, const luthier_nf4* matrix, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    luthier::check(*matrix);
    const int64_t rows = matrix->rows, columns = matrix->columns, tokens = x->size(0);
    check_few(*x, rows, columns);
    const Tensor y = at::empty({tokens, rows}, x->options());
    with_matrix(tokens == 1 ? Kernel::nf4_product_1 : Kernel::nf4_product_8, *matrix, for_rows(rows), seen(*x),
                written(y), static_cast<int>(tokens), static_cast<int>(rows), static_cast<int>(columns));
    *out = new Tensor(y);
  });
}

// The codes, uint8, of the elements of `values`, f32, and the largest magnitude of each 64 of them, f32. bounds [15] are
// the midpoints between levels.
int luthier_fused_nf4_encode(Tensor* values, Tensor* bounds, float smallest, int zero, Tensor** codes,
                             Tensor** largest) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    TORCH_CHECK(values->scalar_type() == at::kFloat && values->is_contiguous());
    TORCH_CHECK(bounds->scalar_type() == at::kFloat && bounds->is_contiguous() && bounds->numel() == 15);
    const int64_t count = values->numel(), blocks = (count + luthier::NF4_BLOCK - 1) / luthier::NF4_BLOCK;
    const Tensor bytes = at::empty({(count + 1) / 2}, values->options().dtype(at::kByte));
    const Tensor most = at::empty({blocks}, values->options());
    if (count > 0)
      launch(Kernel::nf4_encode, *values, for_each(32 * blocks), seen(*values), seen(*bounds), written(bytes),
             written(most), count, smallest, zero);
    *codes = new Tensor(bytes);
    *largest = new Tensor(most);
  });
}

// As luthier_blocks_decode.
int luthier_fused_blocks_decode(Tensor* bytes, int format, int64_t rows, int64_t columns, int kind, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    luthier::check_blocks(*bytes, format, rows, columns);
    const auto type = static_cast<at::ScalarType>(kind);
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16);
    const Tensor dense = at::empty({rows, columns}, bytes->options().dtype(type));
    const int64_t eights = rows * columns / 8;
    if (eights > 0)
      launch(type == at::kFloat ? Kernel::blocks_to_f32 : Kernel::blocks_to_bf16, *bytes, for_each(eights), format,
             seen(*bytes), written(dense), eights);
    *out = new Tensor(dense);
  });
}

// x [tokens, columns] times the transpose of the matrix, for up to 8 tokens. No gradient.
int luthier_fused_blocks_product(Tensor* x, Tensor* bytes, int format, int64_t rows, int64_t columns, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    luthier::check_blocks(*bytes, format, rows, columns);
    check_few(*x, rows, columns);
    const Tensor y = at::empty({x->size(0), rows}, x->options());
    launch(x->size(0) == 1 ? Kernel::blocks_product_1 : Kernel::blocks_product_8, *x, for_rows(rows), format,
           seen(*bytes), seen(*x), written(y), static_cast<int>(x->size(0)), static_cast<int>(rows),
           static_cast<int>(columns));
    *out = new Tensor(y);
  });
}

}  // extern "C"
