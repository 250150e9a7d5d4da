// Functions that the engine needs from libtorch and tch does not offer: backward with given gradients, fused
// optimizer and norm, autograd functions with a hand-written backward, allocator statistics, tensors over memory
// that Rust owns.
//
// Conventions: tensors are passed as at::Tensor*, which is also torch_sys::C_tensor; for failures see seam.h.

#include <ATen/Context.h>
#include <ATen/Generator.h>
#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_flash_attention_forward.h>
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
#include <ATen/ops/zeros_like.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <stdlib.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "adapted.h"
#include "cpu.h"
#include "heap.h"
#include "kernels.h"
#include "launch.h"
#include "remade.h"
#include "seam.h"

using at::Tensor;
using luthier::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Whether this process, not the user, asked for CUDA memory in segments that grow.
bool growing_segments = false;

// Whether a driver says that it has no memory that grows.
bool is_refused(std::string_view message) {
  return message.find("CUDA driver error") != std::string_view::npos ||
         message.find("operation not supported") != std::string_view::npos;
}

std::vector<Tensor> gather(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(*tensors[i]);
  return list;
}

// Whether autograd must record an operation on these tensors.
template <class... Tensors>
bool differentiates(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

// x, without gradient where autograd records nothing.
Tensor recorded(const Tensor& x) { return at::GradMode::is_enabled() ? x : x.detach(); }

// Sum over rows of the cross entropy between hidden · weightᵀ and ids, without storing all logits: each chunk of
// rows computes its logits, its loss and directly its gradient (Liger kernel, arXiv 2410.10989, section 3).
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  // Writes the loss of each row of logits, adds the number of rows whose most likely token is right to `correct` if it
  // is given, and replaces the logits by their gradient if requested.
  static void compare(Tensor& logits, const Tensor& ids, Tensor& losses, const Tensor* correct, bool gradient,
                      bool fused) {
    const int64_t rows = logits.size(0), vocabulary = logits.size(1);
    if (fused && logits.scalar_type() == at::kBFloat16) {
      const Tensor hits = at::empty_like(losses), id = ids.contiguous();
      TORCH_CHECK(id.numel() == rows && losses.is_contiguous() && logits.is_contiguous());
      const luthier::Grid grid{static_cast<unsigned>(rows), vocabulary < 8192 ? 128u : VOCABULARY_THREADS};
      luthier::launch(luthier::Kernel::compare_rows, logits, grid, logits.mutable_data_ptr(), id.const_data_ptr(),
                      losses.mutable_data_ptr(), hits.mutable_data_ptr(), vocabulary, static_cast<int>(gradient));
      if (correct) correct->add_(hits.sum().to(at::kLong));
      return;
    }
    if (correct) correct->add_(logits.argmax(1, true).eq(ids).sum());
    if (plain(logits) && plain(losses) && ids.is_contiguous()) {
      const int64_t* id = ids.const_data_ptr<int64_t>();
      by_type(logits, [&](auto number) {
        using T = decltype(number);
        at::parallel_for(0, rows, grain(vocabulary), [&](int64_t start, int64_t end) {
          for (int64_t row = start; row < end; ++row) {
            TORCH_CHECK_INDEX(id[row] >= 0 && id[row] < vocabulary, "token ", id[row], " of ", vocabulary);
            write<float>(losses)[row] = luthier::typed_kernels<T>().cross_entropy(
                write<T>(logits) + row * vocabulary, vocabulary, id[row], gradient);
          }
        });
      });
      return;
    }
    Tensor normaliser = logits.logsumexp(1, true);
    losses.copy_(normaliser.sub(logits.gather(1, ids)).squeeze(1));
    if (gradient) {
      logits.sub_(normaliser).exp_();
      logits.scatter_add_(1, ids, at::full_like(ids, -1, losses.options()));
    }
  }

  // Computes the logits of hidden states in raw; returns the derivative of their cap if there is one.
  static Tensor score(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias, double cap,
                      Tensor raw) {
    if (multiplies(hidden) && plain(hidden, weight)) multiply(hidden, false, {weight, true}, raw, 1, false);
    else at::mm_out(raw, hidden, weight.t());
    if (bias) raw.add_(*bias);
    Tensor slope;
    if (cap > 0) {
      raw.div_(cap).tanh_();
      slope = raw.to(at::kFloat).square().neg_().add_(1);
      raw.mul_(cap);
    }
    return slope;
  }

  // hidden [N, H], weight [V, H], bias [V] or undefined, ids [N] int64 in 0..V; cap 0 means none. Returns {sum,
  // loss per row [N], number of rows whose most likely token is right}. Gradients flow through the sum or, with
  // by_row, through each row's own loss. The weight of each row is known only in the backward pass. There, hidden
  // gradients are scaled by row, and those of a trained weight and bias are computed from the logits, which are
  // computed again. `fused` takes the kernel for CUDA, if the logits have no cap.
  static variable_list forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight,
                               const std::optional<Tensor>& bias, const Tensor& ids, double cap, int64_t chunk,
                               bool count_correct, bool by_row, bool fused) {
    const Clock clock(HEAD);
    const bool trained_weight = weight.requires_grad(), trained_bias = bias && bias->requires_grad();
    const bool want_hidden = hidden.requires_grad(), want_weight = trained_weight && !by_row;
    const bool want_bias = trained_bias && !by_row;
    const bool own = multiplies(hidden) && plain(hidden, weight);
    const int64_t rows = hidden.size(0), vocabulary = weight.size(0);
    const auto single = hidden.options().dtype(at::kFloat).requires_grad(false);
    fused = fused && cap <= 0 && hidden.scalar_type() == at::kBFloat16;
    Tensor losses = at::empty({rows}, single);
    Tensor correct = at::zeros({}, single.dtype(at::kLong));
    Tensor grad_hidden = want_hidden ? at::empty_like(hidden) : Tensor();
    Tensor grad_weight = want_weight ? at::zeros(weight.sizes(), single) : Tensor();
    Tensor grad_bias = want_bias ? at::zeros(bias->sizes(), single) : Tensor();
    chunk = std::max<int64_t>(1, std::min(chunk, rows));
    Tensor space = at::empty({chunk, vocabulary}, hidden.options().requires_grad(false));
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t end = std::min(rows, start + chunk);
      Tensor part = hidden.slice(0, start, end), id = ids.slice(0, start, end).unsqueeze(1);
      Tensor raw = space.slice(0, 0, end - start);
      const Tensor slope = score(part, weight, bias, cap, raw);
      Tensor logits = fused || plain(raw) ? raw : raw.to(at::kFloat);
      Tensor loss = losses.slice(0, start, end);
      compare(logits, id, loss, count_correct ? &correct : nullptr, want_hidden || want_weight || want_bias, fused);
      if (slope.defined()) logits.mul_(slope);
      Tensor gradient = logits.to(hidden.scalar_type());
      if (want_hidden) {
        Tensor out = grad_hidden.slice(0, start, end);
        if (own) multiply(gradient, false, {weight, false}, out, 1, false);
        else at::mm_out(out, gradient, weight);
      }
      if (want_weight && own) multiply(gradient, true, {part, false}, grad_weight, 1, true);
      else if (want_weight) grad_weight.add_(gradient.t().mm(part));
      if (want_bias) grad_bias.add_(gradient.sum(0, false, at::kFloat));
    }
    Tensor sum = losses.sum();
    variable_list saved{grad_hidden, want_weight ? grad_weight.to(weight.scalar_type()) : Tensor(),
                        want_bias ? grad_bias.to(bias->scalar_type()) : Tensor()};
    if (by_row && (trained_weight || trained_bias))
      saved.insert(saved.end(), {hidden, weight, bias.value_or(Tensor()), ids});
    ctx->save_for_backward(saved);
    ctx->saved_data["by_row"] = by_row;
    ctx->saved_data["cap"] = cap;
    ctx->saved_data["chunk"] = chunk;
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({by_row ? sum : losses, correct});
    return {sum, losses, correct};
  }

  // The gradients of a trained weight and bias, with each row's loss weighted by its share [N].
  static std::pair<Tensor, Tensor> weigh(const Tensor& hidden, const Tensor& weight, const Tensor& bias,
                                         const Tensor& ids, const Tensor& shares, double cap, int64_t chunk) {
    const int64_t rows = hidden.size(0);
    const auto offset = bias.defined() ? std::optional<Tensor>(bias) : std::nullopt;
    const auto single = shares.options();
    const bool want_weight = weight.requires_grad(), want_bias = bias.defined() && bias.requires_grad();
    Tensor grad_weight = want_weight ? at::zeros(weight.sizes(), single) : Tensor();
    Tensor grad_bias = want_bias ? at::zeros(bias.sizes(), single) : Tensor();
    Tensor space = at::empty({chunk, weight.size(0)}, hidden.options().requires_grad(false));
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t end = std::min(rows, start + chunk);
      const Tensor part = hidden.slice(0, start, end), id = ids.slice(0, start, end).unsqueeze(1);
      Tensor raw = space.slice(0, 0, end - start);
      const Tensor slope = score(part, weight, offset, cap, raw);
      Tensor logits = raw.to(at::kFloat);
      Tensor loss = at::empty({end - start}, single);
      compare(logits, id, loss, nullptr, true, false);
      if (slope.defined()) logits.mul_(slope);
      logits.mul_(shares.slice(0, start, end).unsqueeze(1));
      if (want_weight) grad_weight.add_(logits.to(hidden.scalar_type()).t().mm(part));
      if (want_bias) grad_bias.add_(logits.sum(0));
    }
    return {want_weight ? grad_weight.to(weight.scalar_type()) : Tensor(),
            want_bias ? grad_bias.to(bias.scalar_type()) : Tensor()};
  }

  // gradient · share [1] f32, multiplied in f32: a step's share is 1 / count, which bf16 would round by up to
  // 1/512. The products are computed in f32 for this many rows at a time.
  static Tensor scaled(const Tensor& gradient, const Tensor& share, int64_t rows) {
    if (gradient.scalar_type() == at::kFloat) return gradient.mul(share);
    Tensor result = at::empty_like(gradient);
    for (int64_t start = 0; start < gradient.size(0); start += rows) {
      const int64_t end = std::min(gradient.size(0), start + rows);
      result.slice(0, start, end).copy_(gradient.slice(0, start, end).mul(share));
    }
    return result;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    variable_list result(9);
    const bool by_row = ctx->saved_data["by_row"].toBool();
    if (!gradients[by_row ? 1 : 0].defined()) return result;
    auto saved = ctx->get_saved_variables();
    if (by_row) {
      const Tensor shares = gradients[1].to(at::kFloat);
      if (saved[0].defined()) result[0] = saved[0].mul(shares.unsqueeze(1)).to(saved[0].scalar_type());
      if (saved.size() > 3)
        std::tie(result[1], result[2]) = weigh(saved[3], saved[4], saved[5], saved[6], shares,
                                               ctx->saved_data["cap"].toDouble(), ctx->saved_data["chunk"].toInt());
      return result;
    }
    const Tensor share = gradients[0].to(at::kFloat).reshape({1});
    for (size_t i = 0; i < 3; ++i)
      if (saved[i].defined()) result[i] = scaled(saved[i], share, ctx->saved_data["chunk"].toInt());
    return result;
  }
};

}  // namespace

extern "C" {

const char* luthier_last_error() { return luthier::last_error.c_str(); }

// Must be called once, before anything else allocates or starts a thread.
int luthier_prepare_process() {
  return guarded([] {
    luthier::Heap::install();
    // With segments that grow instead of being allocated again, CUDA fragmentation under changing shapes is halved.
    growing_segments = getenv("PYTORCH_CUDA_ALLOC_CONF") == nullptr && getenv("PYTORCH_ALLOC_CONF") == nullptr;
    if (growing_segments) setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", 0);
    // The order in which the driver, nvidia-smi and Luthier count GPUs; CUDA's own begins with the fastest.
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0);
    // Without it cuBLAS results may differ from run to run; it takes 32 MiB.
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  });
}

int luthier_set_threads(int threads) {
  return guarded([=] { at::set_num_threads(threads); });
}

int luthier_set_deterministic(int on) {
  return guarded([=] {
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false);
    // No memory is read before it is written, so none needs to be filled.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

int luthier_set_tf32(int on) {
  return guarded([=] {
    at::globalContext().setFloat32MatmulPrecision(on ? "high" : "highest");
  });
}

// Whether products of f32 on CUDA may round their operands to TF32.
int luthier_tf32(int* on) {
  return guarded([=] { *on = at::globalContext().float32MatmulPrecision() != at::Float32MatmulPrecision::HIGHEST; });
}

// Copies a CPU tensor to a CUDA device through pinned memory, in the device's current stream.
int luthier_upload(Tensor* x, int device, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    const at::Device cuda(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    *out = new Tensor(x->pin_memory().to(cuda, /*non_blocking=*/true));
  });
}

// Copies a CUDA tensor to pinned host memory. It is valid once the device has reached this point.
int luthier_download(Tensor* x, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    Tensor host = at::empty(x->sizes(), x->options().device(at::kCPU).pinned_memory(true));
    *out = new Tensor(host.copy_(*x, /*non_blocking=*/true));
  });
}

// The first allocation on a CUDA device. Some virtual GPUs have no memory that grows: there the allocator goes on
// without, unless the user set how it allocates.
int luthier_start_device_memory(int device, int64_t bytes) {
  return guarded([=] {
    const auto options = at::device(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device))).dtype(at::kByte);
    try {
      at::empty({bytes}, options);
      return;
    } catch (const c10::Error& error) {
      if (!growing_segments || !is_refused(error.what_without_backtrace())) throw;
    }
    c10::CachingAllocator::setAllocatorSettings("expandable_segments:False");
    at::empty({bytes}, options);
  });
}

// Attention takes any kernel but cuDNN's, which makes a plan for each new length.
int luthier_leave_out_cudnn_attention() {
  return guarded([] { at::globalContext().setSDPUseCuDNN(false); });
}

int luthier_has_cudnn_attention(int* on) {
  return guarded([=] { *on = at::globalContext().userEnabledCuDNNSDP(); });
}

// Rows of x [K, …] by index [n], int64.
int luthier_gather(Tensor* x, Tensor* index, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(x->dim() > 0 && x->numel() > 0 && index->dim() == 1 && index->scalar_type() == at::kLong);
    *out = new Tensor(Gather::apply(*x, *index));
  });
}

// Records an event after all work launched so far on the current stream of a CUDA device.
int luthier_event_record(int device, c10::Event** out) {
  return guarded([=] {
    auto event = std::make_unique<c10::Event>(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
    const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
    event->record(cuda.getStream(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device))));
    *out = event.release();
  });
}

int luthier_event_wait(c10::Event* event) {
  return guarded([=] { event->synchronize(); });
}

// Waits for the later event.
int luthier_event_seconds(c10::Event* earlier, c10::Event* later, double* out) {
  return guarded([=] {
    later->synchronize();
    *out = earlier->elapsedTime(*later) / 1000;
  });
}

void luthier_event_free(c10::Event* event) { delete event; }

// A tensor over memory that the caller owns. release(owner) is called when the last tensor over it is freed.
int luthier_borrow(void* data, const int64_t* sizes, size_t dimensions, int kind, void (*release)(void*), void* owner,
                   Tensor** out) {
  return guarded([=] {
    *out = new Tensor(at::from_blob(
        data, at::IntArrayRef(sizes, dimensions), [release, owner](void*) { release(owner); },
        at::TensorOptions().dtype(static_cast<at::ScalarType>(kind))));
  });
}

// Computes the gradients of the leaves, from roots with the given gradients (null: 1).
int luthier_backward(Tensor* const* roots, Tensor* const* gradients, size_t count) {
  return guarded([=] {
    variable_list starts;
    for (size_t i = 0; i < count; ++i) starts.push_back(gradients[i] ? *gradients[i] : Tensor());
    torch::autograd::backward(gather(roots, count), starts);
  });
}

int luthier_as_recorded(Tensor* x, Tensor** out) {
  return guarded([=] { *out = new Tensor(recorded(*x)); });
}

// Moves the gradient out of a leaf; undefined if it has none.
int luthier_take_gradient(Tensor* leaf, Tensor** out) {
  return guarded([=] { *out = new Tensor(std::exchange(leaf->mutable_grad(), Tensor())); });
}

// Gradients scaled by min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does, or as they are if the
// limit is 0; then AdamW; then each working copy (or null) is written from its parameter. All arithmetic is in f32. If
// left_out (0-dimensional f32, on their device) is 1, nothing changes but the scale of f32 gradients. `fused` says
// whether one kernel updates a parameter with a working copy.
int luthier_adamw(Tensor* const* parameters, Tensor* const* gradients, Tensor* const* first, Tensor* const* second,
                  Tensor* const* steps, Tensor* const* working, size_t count, Tensor* norm, double limit,
                  double learning_rate, double beta1, double beta2, double weight_decay, double epsilon,
                  Tensor* left_out, int fused) {
  // As FusedUpdate of training.rs; 0 is none.
  constexpr int POSSIBLE = 1, ALWAYS = 2;
  return guarded([=] {
    const Clock clock(OPTIMIZER);
    at::NoGradGuard no_grad;
    using List = std::vector<Tensor>;
    at::_foreach_add_(gather(steps, count), left_out->neg().add_(1));
    const Tensor scale = limit > 0 ? norm->add(1e-6).reciprocal().mul(limit).clamp_max(1.0) : Tensor();
    const auto update = [&](const List& values, const List& slopes, const List& firsts, const List& seconds,
                            const List& counters) {
      at::_fused_adamw_(values, slopes, firsts, seconds, /*max_exp_avg_sqs=*/{}, counters, learning_rate, beta1, beta2,
                        weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, *left_out);
    };
    List values, slopes, firsts, seconds, counters;
    for (size_t i = 0; i < count; ++i) {
      if (working[i]) {
        const luthier::Trained trained{*parameters[i], *first[i], *second[i], *working[i], *steps[i]};
        if (fused == ALWAYS || (fused == POSSIBLE && luthier::takes_adamw(*gradients[i], trained))) {
          luthier::fused_adamw(*gradients[i], trained, scale, *left_out,
                               {learning_rate, beta1, beta2, weight_decay, epsilon});
          continue;
        }
        // One after another, so that only one gradient is in f32 too.
        Tensor slope = gradients[i]->to(at::kFloat);
        if (scale.defined()) slope.mul_(scale);
        update({*parameters[i]}, {slope}, {*first[i]}, {*second[i]}, {*steps[i]});
        working[i]->copy_(*parameters[i]);
        continue;
      }
      values.push_back(*parameters[i]);
      slopes.push_back(*gradients[i]);
      firsts.push_back(*first[i]);
      seconds.push_back(*second[i]);
      counters.push_back(*steps[i]);
    }
    if (values.empty()) return;
    if (scale.defined()) at::_foreach_mul_(slopes, scale);
    update(values, slopes, firsts, seconds, counters);
  });
}

// Euclidean norm of all gradients together, computed in f32, a 0-dimensional tensor on their device. The caller decides when to read
// it.
int luthier_grad_norm(Tensor* const* gradients, size_t count, Tensor** out) {
  return guarded([=] {
    const Clock clock(OPTIMIZER);
    at::NoGradGuard no_grad;
    auto norms = at::_foreach_norm(gather(gradients, count), 2, at::kFloat);
    *out = new Tensor(at::linalg_vector_norm(at::stack(norms), 2));
  });
}

int luthier_linear_cross_entropy(Tensor* hidden, Tensor* weight, Tensor* bias, Tensor* ids, double cap, int64_t chunk,
                                 int count_correct, int by_row, int fused, Tensor** sum, Tensor** losses,
                                 Tensor** correct) {
  return guarded([=] {
    // The function does not see whether autograd records, and would compute the gradients of leaves in vain.
    const auto offset = bias ? std::optional<Tensor>(recorded(*bias)) : std::nullopt;
    auto result = LinearCrossEntropy::apply(*hidden, recorded(*weight), offset, *ids, cap, chunk, count_correct != 0,
                                            by_row != 0, fused != 0);
    *sum = new Tensor(result[0]);
    *losses = new Tensor(result[1]);
    *correct = new Tensor(result[2]);
  });
}

// x [N, in] · weightᵀ + bias (or null), [N, out]. Differentiable in all three.
int luthier_linear(Tensor* x, Tensor* weight, Tensor* bias, Tensor** out) {
  return guarded([=] {
    const auto shift = bias ? std::optional<Tensor>(*bias) : std::nullopt;
    TORCH_CHECK(x->dim() == 2 && weight->dim() == 2 && x->size(1) == weight->size(1), "the shapes do not fit");
    TORCH_CHECK(plain(*x, *weight) && (!shift || (plain(*x, *shift) && shift->numel() == weight->size(0))));
    const bool recorded = differentiates(*x, *weight, shift ? *shift : *x);
    // Few tokens need no matrix units: reading the weight takes all the time.
    const bool own = multiplies(*x) || (x->size(0) <= FEW_TOKENS && !recorded);
    if (!own) *out = new Tensor(at::linear(*x, *weight, shift));
    else if (recorded) *out = new Tensor(Linear::apply(*x, *weight, shift));
    else *out = new Tensor(Linear::compute(*x, *weight, shift));
  });
}

// x [tokens, columns] times the transpose of a weight that `make` makes; gradients reach x. release(owner) is
// always called once the weight will not be made again.
int luthier_remade_linear(Tensor* x, Make make, void (*release)(void*), void* owner, Tensor** out) {
  return guarded([=] {
    const auto maker = c10::make_intrusive<Maker>(make, release, owner);
    TORCH_CHECK(x->dim() == 2, "x must be a matrix");
    *out = new Tensor(RemadeLinear::apply(*x, maker));
  });
}

int luthier_rms_norm(Tensor* x, Tensor* weight, double epsilon, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(plain(*x, *weight) && weight->numel() == x->size(-1) && x->numel() > 0);
    *out = new Tensor(RmsNorm::apply(*x, *weight, epsilon));
  });
}

int luthier_swiglu(Tensor* gate, Tensor* up, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(plain(*gate, *up) && gate->sizes() == up->sizes());
    *out = new Tensor(SwiGlu::apply(*gate, *up));
  });
}

int luthier_rope(Tensor* x, Tensor* cos, Tensor* sin, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(plain(*x, *cos, *sin) && x->dim() == 3 && x->numel() > 0);
    TORCH_CHECK(cos->sizes() == sin->sizes() && cos->numel() % x->size(0) == 0);
    TORCH_CHECK(2 * cos->numel() <= x->size(0) * x->size(2));
    *out = new Tensor(Rope::apply(*x, *cos, *sin));
  });
}

// For each of `count` documents, the number of tokens before its own and of its own; `rows` as in Attention.
int luthier_attention(Tensor* query, Tensor* key, Tensor* value, const int64_t* before, const int64_t* own,
                      size_t count, const int64_t* rows, size_t row_count, double scale, Tensor** out) {
  return guarded([=] {
    const std::vector<int64_t> befores(before, before + count), owns(own, own + count);
    const std::vector<int64_t> key_rows(rows, rows + row_count);
    TORCH_CHECK(plain(*query, *key, *value) && query->dim() == 3 && key->dim() == 3);
    TORCH_CHECK(key->sizes() == value->sizes() && query->numel() > 0);
    int64_t queries = 0, seen = 0;
    for (size_t i = 0; i < count; ++i) {
      TORCH_CHECK(befores[i] >= 0 && befores[i] <= key->size(0), "a document shares more tokens than there are keys");
      TORCH_CHECK(owns[i] > 0 && owns[i] <= query->size(0), "a document is empty");
      queries += owns[i];
      seen += befores[i] + owns[i];
    }
    for (int64_t row : key_rows) TORCH_CHECK(row >= 0 && row < key->size(0), "a row of keys is out of range");
    TORCH_CHECK(query->size(0) == queries && seen == (row_count == 0 ? key->size(0) : static_cast<int64_t>(row_count)));
    TORCH_CHECK(query->size(2) == key->size(2) && key->size(1) > 0 && query->size(1) % key->size(1) == 0);
    TORCH_CHECK(query->size(2) % 2 == 0, "the head size must be even");
    *out = new Tensor(Attention::apply(*query, *key, *value, befores, owns, key_rows, scale));
  });
}

// The same on CUDA for documents whose keys and values lie as they see them. queries, keys [documents + 1] int32: where
// each document's begin. A window above 0 is the number of keys that a query sees at most.
int luthier_flash_attention(Tensor* query, Tensor* key, Tensor* value, Tensor* queries, Tensor* keys,
                            int64_t most_queries, int64_t most_keys, int64_t window, double scale, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(query->is_cuda() && query->dim() == 3 && key->dim() == 3 && key->sizes() == value->sizes());
    const auto back = window > 0 ? std::optional<int64_t>(window - 1) : std::nullopt;
    const auto ahead = window > 0 ? std::optional<int64_t>(0) : std::nullopt;
    const auto result = at::_flash_attention_forward(*query, *key, *value, *queries, *keys, most_queries, most_keys,
                                                     /*dropout_p=*/0.0, /*is_causal=*/true,
                                                     /*return_debug_mask=*/false, scale, back, ahead);
    *out = new Tensor(std::get<0>(result).flatten(1));
  });
}

// One query per row against a cache: query [B, heads, size], keys and values [B, groups, room, size], of which each
// row uses lengths[row]. Returns [B, heads · size]. No gradient.
int luthier_attend(Tensor* query, Tensor* keys, Tensor* values, const int64_t* lengths, size_t count, double scale,
                   Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(plain(*query, *keys, *values) && query->dim() == 3 && keys->dim() == 4);
    const int64_t rows = query->size(0), heads = query->size(1), size = query->size(2);
    const int64_t groups = keys->size(1), room = keys->size(2);
    TORCH_CHECK(static_cast<int64_t>(count) == rows && keys->size(0) == rows && keys->size(3) == size);
    TORCH_CHECK(keys->sizes() == values->sizes() && groups > 0 && heads % groups == 0);
    for (size_t i = 0; i < count; ++i) TORCH_CHECK(lengths[i] > 0 && lengths[i] <= room);
    at::NoGradGuard no_grad;
    const int64_t shared = heads / groups;
    Tensor mixed = at::empty({rows, heads * size}, query->options());
    by_type(*query, [&](auto number) {
      using T = decltype(number);
      const T *q = read<T>(*query), *k = read<T>(*keys), *v = read<T>(*values);
      at::parallel_for(0, rows * groups, grain(room * size), [&](int64_t from, int64_t to) {
        for (int64_t index = from; index < to; ++index) {
          const int64_t length = lengths[index / groups], at = index * shared * size, stored = index * room * size;
          auto* scores = reinterpret_cast<float*>(space(shared * length));
          luthier::typed_kernels<T>().attend(q + at, k + stored, v + stored, scores, write<T>(mixed) + at, shared, size,
                                             length, static_cast<float>(scale));
        }
      });
    });
    *out = new Tensor(mixed);
  });
}

// A matrix [rows, columns]: a tensor, or as stored in a file (`dense` null).
struct luthier_matrix {
  const Tensor* dense;
  const uint8_t* bytes;
  size_t length;
  int format;
  int64_t rows, columns, heads;
};

// x [tokens, columns] times the transpose of each matrix, [tokens, rows], for few tokens. All threads are woken once for
// all products. No gradient.
int luthier_few_products(Tensor* x, const luthier_matrix* matrices, size_t count, Tensor** out) {
  return guarded([=] {
    TORCH_CHECK(plain(*x) && x->dim() == 2 && count > 0);
    const int64_t tokens = x->size(0), columns = x->size(1);
    at::NoGradGuard no_grad;
    std::vector<Tensor> results;
    // Results before they are rounded, of stored matrices.
    std::vector<std::vector<float>> wide;
    // The first row of each matrix among those of all.
    std::vector<int64_t> starts{0};
    for (size_t i = 0; i < count; ++i) {
      const luthier_matrix& matrix = matrices[i];
      TORCH_CHECK(matrix.columns == columns && matrix.rows >= 0);
      if (matrix.dense) {
        TORCH_CHECK(plain(*x, *matrix.dense) && matrix.dense->dim() == 2);
        TORCH_CHECK(matrix.dense->size(0) == matrix.rows && matrix.dense->size(1) == columns);
      } else {
        const int format = matrix.format;
        TORCH_CHECK(format >= 0 && format < luthier::FORMATS && columns % luthier::BLOCK_ELEMENTS[format] == 0);
        TORCH_CHECK(matrix.heads == 0 || matrix.rows % (2 * matrix.heads) == 0);
        const auto row_bytes = columns / luthier::BLOCK_ELEMENTS[format] * luthier::BLOCK_BYTES[format];
        TORCH_CHECK(static_cast<int64_t>(matrix.length) == matrix.rows * row_bytes);
      }
      results.push_back(at::empty({tokens, matrix.rows}, x->options()));
      wide.emplace_back(matrix.dense ? 0 : static_cast<size_t>(tokens * matrix.rows));
      starts.push_back(starts.back() + matrix.rows);
    }
    by_type(*x, [&](auto number) {
      using T = decltype(number);
      const auto& kernels = luthier::typed_kernels<T>();
      std::vector<float> in(static_cast<size_t>(x->numel()));
      kernels.widen(read<T>(*x), in.data(), x->numel());
      at::parallel_for(0, starts.back(), grain(columns), [&](int64_t start, int64_t end) {
        for (size_t i = 0; i < count; ++i) {
          const luthier_matrix& matrix = matrices[i];
          const int64_t rows = matrix.rows, first = std::max<int64_t>(0, start - starts[i]);
          const int64_t last = std::min(rows, end - starts[i]);
          if (first >= last) continue;
          T* y = write<T>(results[i]);
          if (matrix.dense) {
            kernels.rows_product(in.data(), read<T>(*matrix.dense), y, tokens, columns, rows, first, last);
            continue;
          }
          const luthier::Stored stored{matrix.bytes, rows, columns, matrix.heads};
          float* sums = wide[i].data();
          luthier::kernels().stored_product(static_cast<luthier::Format>(matrix.format), stored, in.data(), sums, tokens,
                                            first, last);
          for (int64_t token = 0; token < tokens; ++token)
            kernels.narrow(sums + token * rows + first, y + token * rows + first, last - first);
        }
      });
    });
    for (size_t i = 0; i < count; ++i) out[i] = new Tensor(results[i]);
  });
}

// Nanoseconds of CPU time of each part since the last call.
int luthier_spent(int64_t* out, size_t count) {
  return guarded([=] {
    TORCH_CHECK(count == PARTS);
    for (size_t i = 0; i < count; ++i) out[i] = spent[i].exchange(0);
  });
}

// x [N, in] · weightᵀ + bias (or null) + scale · (x · aᵀ) · bᵀ, [N, out]. Differentiable in all but the weight.
// gate and up are null, or what x is the gated activation of, if the kernel for that works on its device.
int luthier_adapted_linear(Tensor* x, Tensor* weight, Tensor* bias, Tensor* a, Tensor* b, double scale, Tensor* gate,
                           Tensor* up, Tensor** out) {
  return guarded([=] {
    const auto shift = bias ? std::optional<Tensor>(*bias) : std::nullopt;
    TORCH_CHECK(x->dim() == 2 && weight->dim() == 2 && a->dim() == 2 && b->dim() == 2 && !weight->requires_grad());
    TORCH_CHECK(x->size(1) == weight->size(1) && x->size(1) == a->size(1), "the shapes do not fit");
    TORCH_CHECK(a->size(0) == b->size(1) && b->size(0) == weight->size(0), "the shapes do not fit");
    TORCH_CHECK(!shift || shift->numel() == weight->size(0), "the shapes do not fit");
    const bool own = multiplies(*x) && plain(*x, *weight) && (!shift || plain(*x, *shift)) && plain(*a) && plain(*b);
    if (own && x->size(1) > 0) {
      if (differentiates(*x, *a, *b, shift ? *shift : *x))
        *out = new Tensor(Adapted::apply(*x, *weight, *a, *b, shift, scale));
      else *out = new Tensor(Adapted::compute(*x, *weight, *a, *b, shift, scale).first);
      return;
    }
    *out = new Tensor(AdaptedElsewhere::apply(*x, *weight, *a, *b, shift, scale, detached(gate), detached(up)));
  });
}

// luthier_adapted_linear of `count` layers with one input, by libtorch's products. A bias may be null, and is frozen.
int luthier_adapted_linears(Tensor* x, Tensor* const* weights, Tensor* const* biases, Tensor* const* as,
                            Tensor* const* bs, const double* scales, size_t count, Tensor** out) {
  return guarded([=] {
    variable_list layers;
    std::vector<Operand> shifts;
    for (size_t i = 0; i < count; ++i) {
      const Tensor &weight = *weights[i], &a = *as[i], &b = *bs[i];
      TORCH_CHECK(x->dim() == 2 && weight.dim() == 2 && a.dim() == 2 && b.dim() == 2 && !weight.requires_grad());
      TORCH_CHECK(x->size(1) == weight.size(1) && x->size(1) == a.size(1), "the shapes do not fit");
      TORCH_CHECK(a.size(0) == b.size(1) && b.size(0) == weight.size(0), "the shapes do not fit");
      TORCH_CHECK(!biases[i] || (biases[i]->numel() == weight.size(0) && !biases[i]->requires_grad()));
      layers.insert(layers.end(), {weight, a, b});
      shifts.push_back(biases[i] ? Operand(*biases[i]) : std::nullopt);
    }
    const auto results =
        AdaptedTogether::apply(*x, at::TensorList(layers), shifts, std::vector<double>(scales, scales + count));
    for (size_t i = 0; i < count; ++i) out[i] = new Tensor(results[i]);
  });
}

// gate and up as in luthier_adapted_linear.
int luthier_add_low_rank(Tensor* y, Tensor* x, Tensor* a, Tensor* b, double scale, Tensor* gate, Tensor* up) {
  return guarded([=] {
    if (multiplies(*x) && plain(*x, *y) && plain(*a) && plain(*b) && x->dim() == 2) {
      TORCH_CHECK(a->dim() == 2 && b->dim() == 2 && x->size(1) == a->size(1) && a->size(0) == b->size(1));
      TORCH_CHECK(y->dim() == 2 && y->size(0) == x->size(0) && y->size(1) == b->size(0));
      if (differentiates(*y, *x, *a, *b)) LowRank::apply(*y, *x, *a, *b, scale);
      else LowRank::compute(*y, *x, *a, *b, scale);
      return;
    }
    TORCH_CHECK(y->dim() == 2 && x->dim() == 2 && a->dim() == 2 && b->dim() == 2, "the shapes do not fit");
    LowRankElsewhere::apply(*y, *x, *a, *b, scale, detached(gate), detached(up));
  });
}

// 0 with probability p, otherwise 1 / (1 - p), with x's shape, type and device; a function of the seed only.
int luthier_dropout_mask(Tensor* x, double p, uint64_t seed, Tensor** out) {
  return guarded([=] {
    at::NoGradGuard no_grad;
    auto generator = at::globalContext().defaultGenerator(x->device()).clone();
    generator.set_current_seed(seed);
    *out = new Tensor(at::empty_like(*x).bernoulli_(1.0 - p, generator).div_(1.0 - p));
  });
}

// Bytes allocated now, highest bytes allocated, bytes reserved now, then free and total bytes of the device.
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

// Returns cached blocks to the device and resets the peak.
int luthier_device_memory_release(int device) {
  return guarded([=] {
    auto* allocator = c10::getDeviceAllocator(at::kCUDA);
    allocator->emptyCache();
    allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}

}  // extern "C"
