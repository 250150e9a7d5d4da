// Launches the kernels of cuda/. Rust compiles and loads them (cuda.rs).
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "cuda/list.h"
#include "cuda/interface.h"

namespace luthier {

#define LUTHIER_NAMED(program, kernel) kernel,
enum class Kernel { LUTHIER_KERNELS(LUTHIER_NAMED) };
#undef LUTHIER_NAMED

struct Grid {
  unsigned blocks, threads;
};

// A grid for kernels whose threads take one item after another.
inline Grid for_each(int64_t items) {
  constexpr int64_t MOST = 4096;
  const int64_t blocks = std::clamp<int64_t>((items + ITEM_THREADS - 1) / ITEM_THREADS, 1, MOST);
  return {static_cast<unsigned>(blocks), ITEM_THREADS};
}

// Queues a kernel in the current stream of the device of `on`.
void start(Kernel kernel, const at::Tensor& on, Grid grid, void** arguments);

// The arguments have exactly the types of the kernel's parameters.
template <class... A>
void launch(Kernel kernel, const at::Tensor& on, Grid grid, A... arguments) {
  void* pointers[] = {&arguments...};
  start(kernel, on, grid, pointers);
}

}  // namespace luthier
