// What the engine needs of libtorch and tch does not offer: a backward with given gradients, fused optimizer and norm,
// autograd functions with a hand-written backward, allocator statistics, tensors over memory that Rust owns.
//
// Conventions: tensors cross as at::Tensor*, which is what torch_sys::C_tensor stands for; every function returns 0, or 1
// with the reason in luthier_last_error() (of this thread); no exception leaves this file.

#include <ATen/Context.h>
#include <ATen/Generator.h>
#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <malloc.h>
#include <stdlib.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <vector>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

thread_local std::string last_error;

template <class F>
int guarded(F&& body) noexcept {
  try {
    try {
      body();
      return 0;
    } catch (const c10::Error& error) {
      last_error = error.what_without_backtrace();
    } catch (const std::exception& error) {
      last_error = error.what();
    } catch (...) {
      last_error = "unknown C++ exception";
    }
  } catch (...) {  // not even memory for the message
  }
  return 1;
}

std::vector<Tensor> gather(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(*tensors[i]);
  return list;
}

// Sum over rows of the cross entropy between hidden · weightᵀ and ids, without ever holding all logits: each chunk of
// rows makes its logits, its loss and at once its gradient (Liger kernel, arXiv 2410.10989, section 3).
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  // hidden [N, H], weight [V, H], ids [N] int64 in 0..V. Returns {sum, per row [N], number of rows whose best is right}.
  static variable_list forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight, const Tensor& ids,
                               int64_t chunk, bool count_correct) {
    const bool want_hidden = hidden.requires_grad(), want_weight = weight.requires_grad();
    const int64_t rows = hidden.size(0), vocabulary = weight.size(0);
    const auto single = hidden.options().dtype(at::kFloat).requires_grad(false);
    Tensor losses = at::empty({rows}, single);
    Tensor correct = at::zeros({}, single.dtype(at::kLong));
    Tensor grad_hidden = want_hidden ? at::empty_like(hidden) : Tensor();
    Tensor grad_weight = want_weight ? at::zeros(weight.sizes(), single) : Tensor();
    chunk = std::max<int64_t>(1, std::min(chunk, rows));
    Tensor space = at::empty({chunk, vocabulary}, hidden.options().requires_grad(false));
    const Tensor transposed = weight.t();
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t end = std::min(rows, start + chunk);
      Tensor part = hidden.slice(0, start, end), id = ids.slice(0, start, end).unsqueeze(1);
      Tensor raw = space.slice(0, 0, end - start);
      at::mm_out(raw, part, transposed);
      Tensor logits = raw.to(at::kFloat);
      if (count_correct) correct.add_(logits.argmax(1, true).eq(id).sum());
      Tensor normaliser = logits.logsumexp(1, true);
      losses.slice(0, start, end).copy_(normaliser.sub(logits.gather(1, id)).squeeze(1));
      if (want_hidden || want_weight) {
        logits.sub_(normaliser).exp_();
        logits.scatter_add_(1, id, at::full_like(id, -1, single));
        Tensor gradient = logits.to(hidden.scalar_type());
        if (want_hidden) {
          Tensor out = grad_hidden.slice(0, start, end);
          at::mm_out(out, gradient, weight);
        }
        if (want_weight) grad_weight.add_(gradient.t().mm(part));
      }
    }
    ctx->save_for_backward({grad_hidden, want_weight ? grad_weight.to(weight.scalar_type()) : Tensor()});
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({losses, correct});
    return {losses.sum(), losses, correct};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    variable_list result(5);
    if (!gradients[0].defined()) return result;
    auto saved = ctx->get_saved_variables();
    for (size_t i = 0; i < 2; ++i)
      if (saved[i].defined()) result[i] = saved[i].mul(gradients[0].to(saved[i].scalar_type()));
    return result;
  }
};

}  // namespace

extern "C" {

const char* luthier_last_error() { return last_error.c_str(); }

// Once, before anything else allocates or starts a thread.
int luthier_prepare_process() {
  return guarded([] {
    // Freed activations stay with the process: giving them back costs a page fault per 4 KiB at the next step.
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, INT32_MAX);
    // Segments that grow instead of being sought anew halve CUDA fragmentation under changing shapes.
    setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", 0);
  });
}

int luthier_set_threads(int threads) {
  return guarded([=] { at::set_num_threads(threads); });
}

int luthier_set_deterministic(int on) {
  return guarded([=] { at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false); });
}

// A tensor over memory that the caller owns; release(owner) runs when the last tensor over it is gone.
int luthier_borrow(void* data, const int64_t* sizes, size_t dimensions, int kind, void (*release)(void*), void* owner,
                   Tensor** out) {
  return guarded([=] {
    *out = new Tensor(at::from_blob(
        data, at::IntArrayRef(sizes, dimensions), [release, owner](void*) { release(owner); },
        at::TensorOptions().dtype(static_cast<at::ScalarType>(kind))));
  });
}

// Gradients of roots, started with gradients (null: one), into the leaves.
int luthier_backward(Tensor* const* roots, Tensor* const* gradients, size_t count) {
  return guarded([=] {
    variable_list starts;
    for (size_t i = 0; i < count; ++i) starts.push_back(gradients[i] ? *gradients[i] : Tensor());
    torch::autograd::backward(gather(roots, count), starts);
  });
}

int luthier_adamw(Tensor* const* parameters, Tensor* const* gradients, Tensor* const* first, Tensor* const* second,
                  Tensor* const* steps, size_t count, double learning_rate, double beta1, double beta2,
                  double weight_decay, double epsilon) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    auto counters = gather(steps, count);
    for (auto& counter : counters) counter.add_(1);
    at::_fused_adamw_(gather(parameters, count), gather(gradients, count), gather(first, count),
                      gather(second, count), /*max_exp_avg_sqs=*/{}, counters, learning_rate, beta1, beta2,
                      weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false);
  });
}

// Euclidean norm over all gradients together, a 0-dimensional tensor on their device: reading it is the caller's choice.
int luthier_grad_norm(Tensor* const* gradients, size_t count, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    auto norms = at::_foreach_norm(gather(gradients, count), 2, at::kFloat);
    *out = new Tensor(at::linalg_vector_norm(at::stack(norms), 2));
  });
}

// Scales all gradients in place by min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.
int luthier_clip(Tensor* const* gradients, size_t count, Tensor* norm, double limit) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    at::_foreach_mul_(gather(gradients, count), norm->add(1e-6).reciprocal().mul(limit).clamp_max(1.0));
  });
}

int luthier_linear_cross_entropy(Tensor* hidden, Tensor* weight, Tensor* ids, int64_t chunk, int count_correct,
                                 Tensor** sum, Tensor** losses, Tensor** correct) {
  return guarded([=] {
    auto result = LinearCrossEntropy::apply(*hidden, *weight, *ids, chunk, count_correct != 0);
    *sum = new Tensor(result[0]);
    *losses = new Tensor(result[1]);
    *correct = new Tensor(result[2]);
  });
}

int luthier_add_low_rank(Tensor* y, Tensor* x, Tensor* a, Tensor* b, double scale) {
  return guarded([=] { y->addmm_(x->mm(a->t()), b->t(), 1, scale); });
}

// 0 with probability p, else 1 / (1 - p), of x's shape, type and device; a function of the seed alone.
int luthier_dropout_mask(Tensor* x, double p, uint64_t seed, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    auto generator = at::globalContext().defaultGenerator(x->device()).clone();
    generator.set_current_seed(seed);
    *out = new Tensor(at::empty_like(*x).bernoulli_(1.0 - p, generator).div_(1.0 - p));
  });
}

// allocated now, allocated at most, reserved now, in bytes, then free and total bytes of the device.
int luthier_device_memory(int device, int64_t* out) {
  return guarded([=] {
    auto* allocator = c10::getDeviceAllocator(at::kCUDA);
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto statistics = allocator->getDeviceStats(index);
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    out[0] = statistics.allocated_bytes[all].current;
    out[1] = statistics.allocated_bytes[all].peak;
    out[2] = statistics.reserved_bytes[all].current;
    const auto [free_bytes, total] = allocator->getMemoryInfo(index);
    out[3] = static_cast<int64_t>(free_bytes);
    out[4] = static_cast<int64_t>(total);
  });
}

// Gives cached blocks back to the device and starts the peak anew.
int luthier_device_memory_release(int device) {
  return guarded([=] {
    auto* allocator = c10::getDeviceAllocator(at::kCUDA);
    allocator->emptyCache();
    allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}

}  // extern "C"
