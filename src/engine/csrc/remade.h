// A linear layer that keeps its weight only during a product. Included only by shim.cpp.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <memory>

#include "cpu.h"

namespace {

// Makes a tensor that the caller owns, or writes the error to `message`, which has `room` bytes.
using Make = Tensor* (*)(void* owner, char* message, size_t room);

// A weight that Rust makes on request.
struct Maker : torch::CustomClassHolder {
  Maker(Make make, void (*release)(void*), void* owner) : make(make), release(release), owner(owner) {}
  ~Maker() override { release(owner); }

  Tensor weight() const {
    char message[512] = "";
    std::unique_ptr<Tensor> made(make(owner, message, sizeof message));
    TORCH_CHECK(made, message);
    return *made;
  }

  Make make;
  void (*release)(void*);
  void* owner;
};

// x · weightᵀ. It saves nothing for its backward pass: the weight is frozen and made again there.
struct RemadeLinear : torch::autograd::Function<RemadeLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<Maker>& maker) {
    ctx->saved_data["maker"] = c10::IValue::make_capsule(maker);
    ctx->set_materialize_grads(false);
    const Tensor weight = maker->weight();
    if (multiplies(x) && plain(x, weight)) return Linear::compute(x, weight, std::nullopt);
    return at::linear(x, weight);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    if (!gradients[0].defined()) return {Tensor(), Tensor()};
    const auto maker = c10::static_intrusive_pointer_cast<Maker>(ctx->saved_data["maker"].toCapsule());
    const Tensor dy = gradients[0].contiguous(), weight = maker->weight();
    if (!multiplies(dy) || !plain(dy, weight)) return {dy.matmul(weight), Tensor()};
    const Clock clock(LINEAR_BACKWARD);
    const Tensor dx = at::empty({dy.size(0), weight.size(1)}, dy.options());
    multiply(dy, false, {weight, false}, dx, 1, false);
    return {dx, Tensor()};
  }
};

}  // namespace
