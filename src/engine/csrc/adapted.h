// Linear layers with LoRA's term by libtorch's products, on any device. Included only by shim.cpp.
#pragma once

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu.h"
#include "fused.h"

namespace {

// Whether a device multiplies matrices of this type to f32, rounding each sum once. The processor does not, nor does every
// build of libtorch for GPUs.
bool widens_products(const Tensor& like) {
  if (!like.is_cuda() || like.scalar_type() == at::kFloat) return false;
  static const bool works = [&] {
    try {
      const Tensor one = at::ones({16, 16}, like.options());
      return at::mm(one, one, at::kFloat).scalar_type() == at::kFloat;
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const c10::AcceleratorError&) {
      throw;
    } catch (const c10::Error&) {
      TORCH_WARN("this libtorch rounds gradients of factors to bf16 before they are added in f32");
      return false;
    }
  }();
  return works;
}

// The product of two matrices in f32, of matrices that may be narrower.
Tensor wide_product(const Tensor& a, const Tensor& b) {
  return widens_products(a) ? at::mm(a, b, at::kFloat) : at::mm(a, b).to(at::kFloat);
}

// The gradients of the factors of scale · (x · aᵀ) · bᵀ, as needed: dhidden = scale · dy · b, hidden = x · aᵀ.
std::pair<Tensor, Tensor> factor_gradients(const Tensor& dhidden, const Tensor& x, const Tensor& dy,
                                           const Tensor& hidden, double scale, bool of_a, bool of_b) {
  return {of_a ? wide_product(dhidden.t(), x) : Tensor(), of_b ? wide_product(dy.t(), hidden).mul_(scale) : Tensor()};
}

// What x = silu(gate) · up was computed from, to compute it again in a backward pass instead of keeping it. They come last,
// because autograd does not count what is missing, and are detached: the gradient goes through x.
using Operand = std::optional<Tensor>;

// What to save in order to have x again.
variable_list again(const Tensor& x, const Operand& gate, const Operand& up) {
  return gate && up ? variable_list{*gate, *up} : variable_list{x, Tensor()};
}

Operand detached(const Tensor* part) { return part ? Operand(part->detach()) : std::nullopt; }

// x of what `again` saved.
Tensor once_more(const Tensor& first, const Tensor& second) {
  return second.defined() ? luthier::gated(first, second) : first;
}

// y += scale · (x · aᵀ) · bᵀ in place, by libtorch's products. Factors, which are f32, are rounded once for both passes.
struct LowRankElsewhere : torch::autograd::Function<LowRankElsewhere> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b,
                        double scale, const Operand& gate, const Operand& up_part) {
    const Tensor down = a.to(x.scalar_type()), up = b.to(x.scalar_type()), hidden = x.mm(down.t());
    y.addmm_(hidden, up.t(), 1, scale);
    variable_list saved = again(x, gate, up_part);
    saved.insert(saved.end(), {down, up, hidden});
    ctx->save_for_backward(saved);
    ctx->saved_data["scale"] = scale;
    ctx->mark_dirty({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &down = saved[2], &up = saved[3], &hidden = saved[4], dy = gradients[0].contiguous();
    const double scale = ctx->saved_data["scale"].toDouble();
    const Tensor dhidden = dy.mm(up).mul_(scale);
    const bool of_a = ctx->needs_input_grad(2);
    variable_list result(7);
    result[0] = dy;
    if (ctx->needs_input_grad(1)) result[1] = dhidden.mm(down);
    const Tensor x = of_a ? once_more(saved[0], saved[1]) : Tensor();
    std::tie(result[2], result[3]) =
        factor_gradients(dhidden, x, dy, hidden, scale, of_a, ctx->needs_input_grad(3));
    return result;
  }
};

// x · weightᵀ + bias + scale · (x · aᵀ) · bᵀ by libtorch's products, whose sums are made in place. The weight is frozen.
// Factors, which are f32, are rounded once for both passes.
struct AdaptedElsewhere : torch::autograd::Function<AdaptedElsewhere> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& a, const Tensor& b,
                        const std::optional<Tensor>& bias, double scale, const Operand& gate, const Operand& up_part) {
    const Tensor down = a.to(x.scalar_type()), up = b.to(x.scalar_type()), hidden = x.mm(down.t());
    Tensor y = at::linear(x, weight, bias);
    y.addmm_(hidden, up.t(), 1, scale);
    variable_list saved = again(x, gate, up_part);
    saved.insert(saved.end(), {weight, down, up, hidden});
    ctx->save_for_backward(saved);
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["bias"] = bias.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &weight = saved[2], &down = saved[3], &up = saved[4], &hidden = saved[5];
    const Tensor dy = gradients[0].contiguous();
    const double scale = ctx->saved_data["scale"].toDouble();
    const bool of_a = ctx->needs_input_grad(2);
    variable_list result(8);
    const Tensor dhidden = dy.mm(up).mul_(scale);
    if (ctx->needs_input_grad(0)) result[0] = dy.mm(weight).addmm_(dhidden, down);
    const Tensor x = of_a ? once_more(saved[0], saved[1]) : Tensor();
    std::tie(result[2], result[3]) =
        factor_gradients(dhidden, x, dy, hidden, scale, of_a, ctx->needs_input_grad(3));
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(4)) result[4] = dy.sum(0);
    return result;
  }
};

// The same for several layers with one input, whose gradient is summed in place. `layers` has weight, a and b of each;
// biases are frozen.
struct AdaptedTogether : torch::autograd::Function<AdaptedTogether> {
  static constexpr size_t EACH = 3;

  static variable_list forward(AutogradContext* ctx, const Tensor& x, at::TensorList layers,
                               const std::vector<Operand>& biases, const std::vector<double>& scales) {
    variable_list results, saved{x};
    for (size_t i = 0; i < scales.size(); ++i) {
      const Tensor &weight = layers[EACH * i], &a = layers[EACH * i + 1], &b = layers[EACH * i + 2];
      const Tensor down = a.to(x.scalar_type()), up = b.to(x.scalar_type()), hidden = x.mm(down.t());
      results.push_back(at::linear(x, weight, biases[i]).addmm_(hidden, up.t(), 1, scales[i]));
      saved.insert(saved.end(), {weight, down, up, hidden});
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["scales"] = scales;
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto scales = ctx->saved_data["scales"].toDoubleVector();
    const Tensor& x = saved[0];
    variable_list result(1 + EACH * scales.size() + 2);
    for (size_t i = 0; i < scales.size(); ++i) {
      const Tensor &weight = saved[4 * i + 1], &down = saved[4 * i + 2], &up = saved[4 * i + 3];
      const Tensor &hidden = saved[4 * i + 4], dy = gradients[i].contiguous(), dhidden = dy.mm(up).mul_(scales[i]);
      if (ctx->needs_input_grad(0)) {
        if (result[0].defined()) result[0].addmm_(dy, weight);
        else result[0] = dy.mm(weight);
        result[0].addmm_(dhidden, down);
      }
      const size_t at = EACH * i + 1;
      std::tie(result[at + 1], result[at + 2]) = factor_gradients(
          dhidden, x, dy, hidden, scales[i], ctx->needs_input_grad(at + 1), ctx->needs_input_grad(at + 2));
    }
    return result;
  }
};

}  // namespace
