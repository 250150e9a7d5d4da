#include "launch.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>

#include "seam.h"

namespace {

// Signatures of CUDA's driver (cuda.h).
using Launch = int (*)(void* function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads,
                       unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream, void** arguments,
                       void** extra);
using SetContext = int (*)(void* context);

#define LUTHIER_NAMED(program, kernel) #kernel,
constexpr const char* NAMES[] = {LUTHIER_KERNELS(LUTHIER_NAMED)};
#undef LUTHIER_NAMED

constexpr size_t COUNT = sizeof NAMES / sizeof *NAMES;

struct Driver {
  Launch launch;
  SetContext set_context;
  void* context;
};

// Written before the first launch only.
Driver driver{};
void* functions[COUNT] = {};

}  // namespace

void luthier::start(Kernel kernel, const at::Tensor& on, Grid grid, void** arguments) {
  const auto index = static_cast<size_t>(kernel);
  void* function = functions[index];
  TORCH_CHECK(driver.launch != nullptr && function != nullptr, "the kernel ", NAMES[index], " is not loaded");
  void* stream = nullptr;
  if (on.is_cuda()) {
    stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(on.device()).native_handle();
    // A thread of a backward pass may not have one yet.
    const int status = driver.set_context(driver.context);
    TORCH_CHECK(status == 0, "CUDA driver error: cuCtxSetCurrent gave ", status);
  }
  const int status = driver.launch(function, grid.blocks, 1, 1, grid.threads, 1, 1, 0, stream, arguments, nullptr);
  TORCH_CHECK(status == 0, "CUDA driver error: cuLaunchKernel gave ", status, " for ", NAMES[index]);
}

extern "C" {

// set_context and context are used on CUDA only.
int luthier_use_driver(Launch launch, SetContext set_context, void* context) {
  return luthier::guarded([=] { driver = {launch, set_context, context}; });
}

int luthier_use_kernel(const char* name, void* function) {
  return luthier::guarded([=] {
    for (size_t i = 0; i < COUNT; ++i)
      if (std::strcmp(NAMES[i], name) == 0) {
        functions[i] = function;
        return;
      }
    TORCH_CHECK(false, "there is no kernel ", name);
  });
}

}  // extern "C"
