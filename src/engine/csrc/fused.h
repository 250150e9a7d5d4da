// What other functions use of fused.cpp.
#pragma once

#include <ATen/core/Tensor.h>

namespace luthier {

// silu(gate) · up, without a gradient. Both are as the kernel takes them.
at::Tensor gated(const at::Tensor& gate, const at::Tensor& up);

struct AdamW {
  double learning_rate, beta1, beta2, weight_decay, epsilon;
};

// A parameter with its moments and the number of its updates, f32, and its copy in bf16.
struct Trained {
  const at::Tensor &parameter, &first, &second, &working, &step;
};

// Whether fused_adamw takes a parameter, by its elements' types and places.
bool takes_adamw(const at::Tensor& gradient, const Trained& trained);

// The update that luthier_adamw describes, of one parameter. Without a scale the gradient is taken as it is.
void fused_adamw(const at::Tensor& gradient, const Trained& trained, const at::Tensor& scale,
                 const at::Tensor& left_out, const AdamW& settings);

}  // namespace luthier
