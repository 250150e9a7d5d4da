// What other functions use of fused.cpp.
#pragma once

#include <ATen/core/Tensor.h>

namespace luthier {

// silu(gate) · up, without a gradient. Both are as the kernel takes them.
at::Tensor gated(const at::Tensor& gate, const at::Tensor& up);

}  // namespace luthier
