// Autograd functions over kernels.h: f32 and bf16 on the CPU. Included only by shim.cpp.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <vector>

#include "kernels.h"

namespace {

using at::Tensor;
using luthier::Unit;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether the kernels support it.
bool plain(const Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) &&
         x.is_contiguous();
}

// Whether they support all of them together.
template <class... Others>
bool plain(const Tensor& x, const Others&... others) {
  return plain(x) && ((plain(others) && others.scalar_type() == x.scalar_type()) && ...);
}

// Parts of a step that are timed, in the order of kernels.rs.
enum Part {
  LINEAR_FORWARD,
  LINEAR_BACKWARD,
  ATTENTION_FORWARD,
  ATTENTION_BACKWARD,
  HEAD,
  ADAPTER_FORWARD,
  ADAPTER_BACKWARD,
  ELEMENTWISE,
  OPTIMIZER,
  PARTS
};

std::atomic<int64_t> spent[PARTS];

// Adds the time until it goes out of scope to a part.
class Clock {
 public:
  explicit Clock(Part part) : part(part), began(std::chrono::steady_clock::now()) {}
  ~Clock() { spent[part] += std::chrono::nanoseconds(std::chrono::steady_clock::now() - began).count(); }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

 private:
  Part part;
  std::chrono::steady_clock::time_point began;
};

// Calls body with a number of the tensor's element type.
template <class F>
auto by_type(const Tensor& x, F&& body) {
  return x.scalar_type() == at::kFloat ? body(float{}) : body(luthier::bf16{});
}

template <class T>
const T* read(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* write(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

const float* floats(const Tensor& x) { return read<float>(x); }

// Scratch memory of this thread, kept for the next call.
Unit* space(int64_t units) {
  thread_local at::DataPtr memory;
  thread_local int64_t held = 0;
  if (held < units) {
    memory.clear();
    held = 0;
    memory = c10::GetCPUAllocator()->allocate(static_cast<size_t>(units) * sizeof(Unit));
    held = units;
  }
  return static_cast<Unit*>(memory.get());
}

// Below this many elements or multiplications one thread does all the work: waking another thread and waiting for
// it takes longer, and much longer if other processes are using the cores.
constexpr int64_t FEW_ELEMENTS = 1 << 15, FEW_PRODUCTS = 1 << 21;

// Least rows of this many elements for each thread.
int64_t grain(int64_t width) { return std::max<int64_t>(1, FEW_ELEMENTS / std::max<int64_t>(1, width)); }

// Runs every task below count. Each thread takes the next task when it has finished one. `products` is the number
// of multiplications of all tasks.
template <class F>
void spread(int64_t count, int64_t products, F&& task) {
  std::atomic<int64_t> next{0};
  const int64_t threads = products < FEW_PRODUCTS ? 1 : at::get_num_threads();
  at::parallel_for(0, std::min<int64_t>(count, threads), 1, [&](int64_t, int64_t) {
    for (int64_t index = next++; index < count; index = next++) task(index);
  });
}

// Most rows of a task with several panels, so that the data that it reads repeatedly stays in its cache.
constexpr int64_t DEEP_ROWS = 512;

template <class T>
void multiply(const luthier::Product<T>& product) {
  const auto& kernels = luthier::typed_kernels<T>();
  const auto shape = kernels.product_shape(product);
  const auto share = [](int64_t whole, int64_t parts) { return (whole + parts - 1) / parts; };
  const int64_t wanted = 2 * at::get_num_threads();
  const int64_t panels = shape.deep ? share(shape.panels, wanted) : 1, columns = share(shape.panels, panels);
  // A product of few columns is also split by rows.
  const int64_t most = share(product.rows, std::max<int64_t>(1, wanted / columns));
  const int64_t rows = share(shape.deep ? std::min(most, DEEP_ROWS) : most, shape.rows) * shape.rows;
  const int64_t blocks = share(product.rows, rows);
  const int64_t scratch = shape.space + shape.space_per_row * (shape.deep ? panels * rows : shape.rows);
  spread(columns * blocks, product.rows * product.columns * product.depth, [&](int64_t task) {
    const int64_t panel = task / blocks * panels, first = task % blocks * rows;
    kernels.product(product, panel, std::min(shape.panels, panel + panels), first, std::min(product.rows, first + rows),
                    space(scratch));
  });
}

// A left operand whose rows are whole units.
Tensor in_units(const Tensor& a) {
  const int64_t pack = static_cast<int64_t>(sizeof(Unit) / a.element_size()), depth = a.size(1);
  if (a.stride(0) % pack == 0 && depth % pack == 0) return a;
  return at::constant_pad_nd(a, {0, depth % pack}).contiguous();
}

// The right operand of a product, transposed if its columns are rows of memory.
struct Right {
  const Tensor& matrix;
  bool across;
  int64_t depth() const { return matrix.size(across ? 1 : 0); }
  int64_t columns() const { return matrix.size(across ? 0 : 1); }
};

// A second product to add.
struct More {
  const Tensor& left;
  Right right;
};

// out (+)= scale · (a · b + more); with a_across, a is transposed. Plain matrices of one type, whose rows may be
// apart; out has their type or f32.
void multiply(const Tensor& a, bool a_across, const Right& b, const Tensor& out, double scale, bool add,
              const More* more = nullptr) {
  by_type(a, [&](auto number) {
    using T = decltype(number);
    constexpr int64_t pack = sizeof(Unit) / sizeof(T);
    const auto& kernels = luthier::typed_kernels<T>();
    luthier::Product<T> product{};
    product.rows = a.size(a_across ? 1 : 0);
    product.depth = a.size(a_across ? 0 : 1);
    product.columns = b.columns();
    TORCH_CHECK(b.depth() == product.depth && out.size(0) == product.rows);
    TORCH_CHECK(out.size(1) == product.columns && a.scalar_type() == b.matrix.scalar_type());
    if (product.rows == 0 || product.columns == 0) return;
    Tensor left = a, more_left;
    if (a_across) {
      const int64_t depth = (product.depth + pack - 1) / pack;
      left = at::empty({depth, product.rows}, a.options().dtype(at::kInt));
      at::parallel_for(0, depth, grain(product.rows), [&](int64_t start, int64_t end) {
        kernels.pack_left(read<T>(a), a.stride(0), product.depth, product.rows, write<Unit>(left), start, end);
      });
      product.left_row = 1;
      product.left_step = product.rows;
    } else {
      left = in_units(a);
      product.left_row = left.stride(0) / pack;
      product.left_step = 1;
    }
    product.left = read<Unit>(left);
    product.right = read<T>(b.matrix);
    product.right_row = b.matrix.stride(0);
    product.right_by_rows = b.across;
    if (more != nullptr) {
      TORCH_CHECK(more->left.size(0) == product.rows && more->left.size(1) == more->right.depth());
      TORCH_CHECK(more->right.columns() == product.columns && product.depth > 0);
      TORCH_CHECK(more->left.scalar_type() == a.scalar_type());
      TORCH_CHECK(more->right.matrix.scalar_type() == a.scalar_type());
      more_left = in_units(more->left);
      product.more_depth = more->right.depth();
      product.more_left = read<Unit>(more_left);
      product.more_left_row = more_left.stride(0) / pack;
      product.more_right = read<T>(more->right.matrix);
      product.more_right_row = more->right.matrix.stride(0);
      product.more_right_by_rows = more->right.across;
    }
    product.out = write<T>(out);
    product.total = out.scalar_type() == a.scalar_type() ? nullptr : write<float>(out);
    product.out_row = out.stride(0);
    product.scale = static_cast<float>(scale);
    product.add = add;
    multiply(product);
  });
}

// On a processor with matrix units, oneDNN uses them for bf16 and is much faster than vector kernels.
bool multiplies(const Tensor& x) {
  static const bool matrix_units = [] {
    const auto found = at::cpu::get_cpu_capabilities();
    const auto entry = found.find("amx_bf16");
    return entry != found.end() && entry->second.isBool() && entry->second.toBool();
  }();
  return plain(x) && !(x.scalar_type() == at::kBFloat16 && matrix_units);
}

// With at most this many tokens, reading a matrix takes longer than multiplying with it.
constexpr int64_t FEW_TOKENS = 8;

// x · weightᵀ + bias, if there is one.
struct Linear : torch::autograd::Function<Linear> {
  static Tensor compute(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    const Clock clock(LINEAR_FORWARD);
    const int64_t tokens = x.size(0), columns = weight.size(1), rows = weight.size(0);
    Tensor y = at::empty({tokens, rows}, x.options().requires_grad(false));
    if (tokens <= FEW_TOKENS) {
      by_type(x, [&](auto number) {
        using T = decltype(number);
        const auto& kernels = luthier::typed_kernels<T>();
        std::vector<float> wide(static_cast<size_t>(x.numel()));
        kernels.widen(read<T>(x), wide.data(), x.numel());
        at::parallel_for(0, rows, grain(columns), [&](int64_t start, int64_t end) {
          kernels.rows_product(wide.data(), read<T>(weight), write<T>(y), tokens, columns, rows, start, end);
        });
      });
      if (bias) y.add_(*bias);
      return y;
    }
    if (bias) y.copy_(bias->expand_as(y));
    multiply(x, false, {weight, true}, y, 1, bias.has_value());
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["bias"] = bias.has_value();
    return compute(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Clock clock(LINEAR_BACKWARD);
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], dy = gradients[0].contiguous();
    variable_list result(3);
    if (ctx->needs_input_grad(0)) {
      result[0] = at::empty({dy.size(0), weight.size(1)}, dy.options());
      multiply(dy, false, {weight, false}, result[0], 1, false);
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = at::empty_like(weight);
      multiply(dy, true, {x, false}, result[1], 1, false);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) result[2] = dy.sum(0);
    return result;
  }
};

// [N, rank] of x's type, in rows of whole units.
Tensor inner(const Tensor& x, int64_t rank) {
  const Tensor memory = at::zeros({x.size(0), rank + rank % 2}, x.options().requires_grad(false));
  return memory.narrow(1, 0, rank);
}

// Gradients of the factors of scale · (x · aᵀ) · bᵀ, f32, as needed: dhidden = scale · dy · b, hidden = x · aᵀ.
Tensor grad_of_a(const Tensor& dhidden, const Tensor& x, const Tensor& a) {
  const Tensor da = at::empty(a.sizes(), x.options().dtype(at::kFloat).requires_grad(false));
  multiply(dhidden, true, {x, false}, da, 1, false);
  return da.to(a.scalar_type());
}

Tensor grad_of_b(const Tensor& hidden, const Tensor& dy, const Tensor& b, double scale) {
  // Computed as the transpose: the left operand of a product is copied, and this one is small.
  const Tensor across = at::empty({b.size(1), b.size(0)}, dy.options().dtype(at::kFloat).requires_grad(false));
  multiply(hidden, true, {dy, false}, across, scale, false);
  return across.t().to(b.scalar_type());
}

// x · weightᵀ + scale · (x · aᵀ) · bᵀ + bias in one product. The weight is frozen. The factors and their gradients
// are always f32.
struct Adapted : torch::autograd::Function<Adapted> {
  static std::pair<Tensor, Tensor> compute(const Tensor& x, const Tensor& weight, const Tensor& a, const Tensor& b,
                                           const std::optional<Tensor>& bias, double scale) {
    const Tensor hidden = inner(x, a.size(0)), up = b.to(x.scalar_type());
    {
      const Clock clock(ADAPTER_FORWARD);
      multiply(x, false, {a.to(x.scalar_type()), true}, hidden, scale, false);
    }
    const Clock clock(LINEAR_FORWARD);
    const Tensor y = at::empty({x.size(0), weight.size(0)}, x.options().requires_grad(false));
    if (bias) y.copy_(bias->expand_as(y));
    const More more{hidden, {up, true}};
    multiply(x, false, {weight, true}, y, 1, bias.has_value(), &more);
    return {y, hidden};
  }

  // The bias comes last, because autograd does not count an undefined one.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& a, const Tensor& b,
                        const std::optional<Tensor>& bias, double scale) {
    const auto [y, hidden] = compute(x, weight, a, b, bias, scale);
    ctx->save_for_backward({x, weight, a, b, hidden});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["bias"] = bias.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &a = saved[2], &b = saved[3], &hidden = saved[4];
    const Tensor dy = gradients[0].contiguous();
    variable_list result(6);
    const Tensor dhidden = inner(x, a.size(0)), down = a.to(x.scalar_type());
    {
      const Clock clock(ADAPTER_BACKWARD);
      multiply(dy, false, {b.to(x.scalar_type()), false}, dhidden, ctx->saved_data["scale"].toDouble(), false);
      if (ctx->needs_input_grad(2)) result[2] = grad_of_a(dhidden, x, a);
      // The saved tensor already includes the scale.
      if (ctx->needs_input_grad(3)) result[3] = grad_of_b(hidden, dy, b, 1);
    }
    const Clock clock(LINEAR_BACKWARD);
    if (ctx->needs_input_grad(0)) {
      result[0] = at::empty_like(x);
      const More more{dhidden, {down, false}};
      multiply(dy, false, {weight, false}, result[0], 1, false, &more);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(4)) result[4] = dy.sum(0);
    return result;
  }
};

// y += scale · (x · aᵀ) · bᵀ in place. The factors and their gradients are always f32.
struct LowRank : torch::autograd::Function<LowRank> {
  static Tensor compute(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, double scale) {
    const Clock clock(ADAPTER_FORWARD);
    const Tensor hidden = inner(x, a.size(0));
    multiply(x, false, {a.to(x.scalar_type()), true}, hidden, 1, false);
    multiply(hidden, false, {b.to(x.scalar_type()), true}, y, scale, true);
    return hidden;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b,
                        double scale) {
    ctx->save_for_backward({x, a, b, compute(y, x, a, b, scale)});
    ctx->saved_data["scale"] = scale;
    ctx->mark_dirty({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Clock clock(ADAPTER_BACKWARD);
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &a = saved[1], &b = saved[2], &hidden = saved[3], dy = gradients[0].contiguous();
    const double scale = ctx->saved_data["scale"].toDouble();
    const Tensor dhidden = inner(x, a.size(0));
    variable_list result(5);
    result[0] = gradients[0];
    multiply(dy, false, {b.to(x.scalar_type()), false}, dhidden, scale, false);
    if (ctx->needs_input_grad(1)) {
      result[1] = at::empty_like(x);
      multiply(dhidden, false, {a.to(x.scalar_type()), false}, result[1], 1, false);
    }
    if (ctx->needs_input_grad(2)) result[2] = grad_of_a(dhidden, x, a);
    if (ctx->needs_input_grad(3)) result[3] = grad_of_b(hidden, dy, b, scale);
    return result;
  }
};

// Norm with a frozen weight.
struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double epsilon) {
    const Clock clock(ELEMENTWISE);
    const int64_t width = x.size(-1), rows = x.numel() / width;
    Tensor y = at::empty_like(x), scales = at::empty({rows}, x.options().dtype(at::kFloat));
    by_type(x, [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, rows, grain(width), [&](int64_t start, int64_t end) {
        luthier::typed_kernels<T>().rms_norm_forward(read<T>(x), read<T>(weight), write<T>(y), write<float>(scales),
                                                     start, end, width, static_cast<float>(epsilon));
      });
    });
    ctx->save_for_backward({x, weight, scales});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Clock clock(ELEMENTWISE);
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &scales = saved[2], dy = gradients[0].contiguous();
    const int64_t width = x.size(-1);
    Tensor dx = at::empty_like(x);
    by_type(x, [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, scales.numel(), grain(width), [&](int64_t start, int64_t end) {
        luthier::typed_kernels<T>().rms_norm_backward(read<T>(x), read<T>(weight), floats(scales), read<T>(dy),
                                                      write<T>(dx), start, end, width);
      });
    });
    return {dx, Tensor(), Tensor()};
  }
};

// silu(gate) · up, saving only its operands.
struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    const Clock clock(ELEMENTWISE);
    Tensor y = at::empty_like(gate);
    by_type(gate, [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, gate.numel(), FEW_ELEMENTS, [&](int64_t start, int64_t end) {
        luthier::typed_kernels<T>().swiglu_forward(read<T>(gate) + start, read<T>(up) + start, write<T>(y) + start,
                                                   end - start);
      });
    });
    ctx->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Clock clock(ELEMENTWISE);
    auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], dy = gradients[0].contiguous();
    Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
    by_type(gate, [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, gate.numel(), FEW_ELEMENTS, [&](int64_t start, int64_t end) {
        luthier::typed_kernels<T>().swiglu_backward(read<T>(gate) + start, read<T>(up) + start, read<T>(dy) + start,
                                                    write<T>(dgate) + start, write<T>(dup) + start, end - start);
      });
    });
    return {dgate, dup};
  }
};

// Rotary embedding of [N, heads, size] by cos and sin [N, half].
struct Rope : torch::autograd::Function<Rope> {
  static Tensor turn(const Tensor& x, const Tensor& cos, const Tensor& sin, float direction) {
    const Clock clock(ELEMENTWISE);
    Tensor y = at::empty_like(x);
    const int64_t half = cos.numel() / x.size(0);
    by_type(x, [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, x.size(0), grain(x.size(1) * x.size(2)), [&](int64_t start, int64_t end) {
        luthier::typed_kernels<T>().rope(read<T>(x), read<T>(cos), read<T>(sin), write<T>(y), start, end, x.size(1),
                                         x.size(2), half, direction);
      });
    });
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turn(x, cos, sin, 1);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    return {turn(gradients[0].contiguous(), saved[0], saved[1], -1), Tensor(), Tensor()};
  }
};

// Sums [count, …] of the rows of x, f32, each of which belongs to one of `count` groups, in a fixed order.
Tensor summed_by_row(const Tensor& x, const std::vector<int64_t>& rows, int64_t count) {
  std::vector<int64_t> ends(count + 1, 0), from(rows.size());
  for (int64_t row : rows) ++ends[row + 1];
  for (int64_t row = 0; row < count; ++row) ends[row + 1] += ends[row];
  std::vector<int64_t> next(ends.begin(), ends.end() - 1);
  for (size_t i = 0; i < rows.size(); ++i) from[next[rows[i]]++] = static_cast<int64_t>(i);
  auto shape = x.sizes().vec();
  shape[0] = count;
  Tensor sums = at::zeros(shape, x.options());
  const int64_t width = x.numel() / std::max<int64_t>(1, x.size(0));
  at::parallel_for(0, count, grain(width), [&](int64_t start, int64_t end) {
    for (int64_t row = start; row < end; ++row) {
      float* sum = write<float>(sums) + row * width;
      for (int64_t i = ends[row]; i < ends[row + 1]; ++i) {
        const float* one = floats(x) + from[i] * width;
        for (int64_t j = 0; j < width; ++j) sum[j] += one[j];
      }
    }
  });
  return sums;
}

// Rows of x [K, …] by an index [n] that may repeat rows. The gradient of a repeated row is summed in f32 and
// rounded once, as in a product that sums over its rows.
struct Gather : torch::autograd::Function<Gather> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& index) {
    ctx->save_for_backward({index});
    ctx->saved_data["rows"] = x.size(0);
    return x.index_select(0, index);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Tensor index = ctx->get_saved_variables()[0], shares = gradients[0].to(at::kFloat).contiguous();
    const int64_t count = ctx->saved_data["rows"].toInt();
    if (index.is_cpu()) {
      const int64_t* named = index.const_data_ptr<int64_t>();
      const std::vector<int64_t> rows(named, named + index.numel());
      return {summed_by_row(shares, rows, count).to(gradients[0].scalar_type()), Tensor()};
    }
    auto shape = shares.sizes().vec();
    shape[0] = count;
    const Tensor sums = at::zeros(shape, shares.options()).index_add_(0, index, shares);
    return {sums.to(gradients[0].scalar_type()), Tensor()};
  }
};

// Causal attention of documents whose own tokens lie end to end, and which may begin with tokens of other
// documents.
struct Attention : torch::autograd::Function<Attention> {
  // Queries per task, a multiple of the kernels' block.
  static constexpr int64_t QUERIES = 64;

  // A document: index of its first own token among all own tokens, index of its first token among all documents'
  // tokens, number of tokens before its own, its length, and the place of its packed keys and values.
  struct Document {
    int64_t own, start, before, length, packed;
  };

  // The documents, and every group's keys and values in the order in which the kernels read them.
  template <class T>
  struct Layout {
    std::vector<Document> documents;
    Tensor keys, values, packed;
    // Sum of all documents' lengths, in which shared tokens count once per document.
    int64_t tokens = 0;
    int64_t heads, groups, size;
    bool backward;
    const T *query, *key, *value;
    float scale;

    Layout(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& before,
           const std::vector<int64_t>& own, const std::vector<int64_t>& rows, double scale, bool backward)
        : keys(chosen(k, rows)), values(chosen(v, rows)), heads(q.size(1)), groups(k.size(1)), size(q.size(2)),
          backward(backward), query(read<T>(q)), key(read<T>(keys)), value(read<T>(values)),
          scale(static_cast<float>(scale)) {
      const auto& kernels = luthier::typed_kernels<T>();
      int64_t first = 0, units = 0;
      for (size_t i = 0; i < own.size(); ++i) {
        const int64_t length = before[i] + own[i];
        documents.push_back({first, tokens, before[i], length, units});
        first += own[i];
        tokens += length;
        units += groups * kernels.attention_packed(length, size, backward);
      }
      packed = at::empty({units}, q.options().dtype(at::kInt).requires_grad(false));
      // Packing reads each number once or twice, which takes as long as about eight multiplications.
      spread(static_cast<int64_t>(documents.size()) * groups, 8 * keys.numel(), [&](int64_t index) {
        const Document& document = documents[index / groups];
        const int64_t first = index % groups * (heads / groups);
        kernels.attention_pack(head(document, first), backward, units_of(document, first));
      });
    }

    static Tensor chosen(const Tensor& x, const std::vector<int64_t>& rows) {
      return rows.empty() ? x : x.detach().index_select(0, at::tensor(rows, at::kLong));
    }

    luthier::Head<T> head(const Document& document, int64_t head) const {
      const int64_t k = document.start * groups * size + head / (heads / groups) * size;
      return {query + place(document, head), key + k, value + k, heads * size, groups * size, document.before,
              document.length, size, scale};
    }

    // Pairs of a query and a key that it sees, over all heads.
    int64_t scores() const {
      int64_t pairs = 0;
      for (const Document& document : documents)
        pairs += (document.length * (document.length + 1) - document.before * (document.before + 1)) / 2;
      return pairs * heads;
    }

    // Offset of a head's first query.
    int64_t place(const Document& document, int64_t head) const { return (document.own * heads + head) * size; }

    Unit* units_of(const Document& document, int64_t head) const {
      const int64_t each = luthier::typed_kernels<T>().attention_packed(document.length, size, backward);
      return write<Unit>(packed) + document.packed + head / (heads / groups) * each;
    }
  };

  // query [N, heads, size], key and value [K, groups, size]; for each document, the number of tokens before its own
  // and of its own; the row of keys and values for every document's tokens, unless these are all rows in order.
  // Returns [N, heads · size].
  static Tensor forward(AutogradContext* ctx, const Tensor& query, const Tensor& key, const Tensor& value,
                        const std::vector<int64_t>& before, const std::vector<int64_t>& own,
                        const std::vector<int64_t>& rows, double scale) {
    const Clock clock(ATTENTION_FORWARD);
    const int64_t heads = query.size(1), size = query.size(2);
    Tensor out = at::empty({query.size(0), heads * size}, query.options());
    Tensor normalisers = at::empty({query.size(0), heads}, query.options().dtype(at::kFloat));
    by_type(query, [&](auto number) {
      using T = decltype(number);
      const Layout<T> layout(query, key, value, before, own, rows, scale, false);
      struct Task {
        const Document* document;
        int64_t first, head;
      };
      std::vector<Task> tasks;
      for (const Document& document : layout.documents)
        for (int64_t first = document.before; first < document.length; first += QUERIES)
          for (int64_t head = 0; head < heads; ++head) tasks.push_back({&document, first, head});
      // The last queries of a document see the most keys: the longest tasks come first.
      std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.first > b.first; });
      spread(static_cast<int64_t>(tasks.size()), layout.scores() * 2 * size, [&](int64_t index) {
        const auto [document, first, head] = tasks[index];
        const auto& kernels = luthier::typed_kernels<T>();
        kernels.attention_forward(layout.head(*document, head), layout.units_of(*document, head), first,
                                  std::min(document->length, first + QUERIES),
                                  write<T>(out) + layout.place(*document, head),
                                  write<float>(normalisers) + document->own * heads + head, heads,
                                  space(kernels.attention_forward_space(document->length, size)));
      });
    });
    ctx->save_for_backward({query, key, value, out, normalisers});
    ctx->saved_data["before"] = before;
    ctx->saved_data["own"] = own;
    ctx->saved_data["rows"] = rows;
    ctx->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Clock clock(ATTENTION_BACKWARD);
    auto saved = ctx->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2], &out = saved[3], &normalisers = saved[4];
    const Tensor dout = gradients[0].contiguous();
    const auto before = ctx->saved_data["before"].toIntVector(), own = ctx->saved_data["own"].toIntVector();
    const auto rows = ctx->saved_data["rows"].toIntVector();
    const double scale = ctx->saved_data["scale"].toDouble();
    const int64_t heads = query.size(1), groups = key.size(1), size = query.size(2);
    Tensor dquery = at::empty_like(query), dkey, dvalue;
    by_type(query, [&](auto number) {
      using T = decltype(number);
      const Layout<T> layout(query, key, value, before, own, rows, scale, true);
      // One part of the gradient of keys and values for each query head and each document that sees a token, summed
      // afterwards.
      const auto single = query.options().dtype(at::kFloat);
      dkey = at::empty({layout.tokens, heads, size}, single);
      dvalue = at::empty({layout.tokens, heads, size}, single);
      spread(static_cast<int64_t>(own.size()) * heads, layout.scores() * 5 * size, [&](int64_t index) {
        const Document& document = layout.documents[index / heads];
        const int64_t head = index % heads, place = layout.place(document, head);
        const int64_t share = (document.start * heads + head) * size;
        const auto& kernels = luthier::typed_kernels<T>();
        kernels.attention_backward(layout.head(document, head), layout.units_of(document, head),
                                   read<T>(out) + place, read<T>(dout) + place,
                                   floats(normalisers) + document.own * heads + head, heads, write<T>(dquery) + place,
                                   write<float>(dkey) + share, write<float>(dvalue) + share,
                                   space(kernels.attention_backward_space(document.length, size)));
      });
    });
    const auto together = [&](const Tensor& x) {
      const Tensor by_group = heads == groups ? x : x.view({x.size(0), groups, heads / groups, size}).sum(2);
      return (rows.empty() ? by_group : summed_by_row(by_group, rows, key.size(0))).to(query.scalar_type());
    };
    return {dquery, together(dkey), together(dvalue), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace
