#include "launch.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>

#include "seam.h"

extern "C" {

// Functions of CUDA's driver (cuda.h), and the context in which a device computes. The last three are used on CUDA only.
struct luthier_launcher {
  int (*launch)(void* function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads,
                unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream, void** arguments,
                void** extra);
  int (*get_context)(void** context);
  int (*set_context)(void* context);
  void* context;
};

}  // extern "C"

namespace {

#define LUTHIER_NAMED(program, kernel) #kernel,
constexpr const char* NAMES[] = {LUTHIER_KERNELS(LUTHIER_NAMED)};
#undef LUTHIER_NAMED

constexpr size_t COUNT = sizeof NAMES / sizeof *NAMES;

// A context's functions are its own.
struct Loaded {
  luthier_launcher launcher;
  void* functions[COUNT];
};

// As DeviceSet of device.rs.
constexpr int64_t MOST_DEVICES = 64;

// The processor, then each CUDA device. A kernel's place is written before the kernel is used.
Loaded everywhere[1 + MOST_DEVICES] = {};

// `device` is -1 for the processor.
Loaded& loaded(int64_t device) {
  TORCH_CHECK(device >= -1 && device < MOST_DEVICES, "kernels cannot be loaded on device ", device);
  return everywhere[1 + device];
}

void check(int status, const char* what, const char* kernel) {
  TORCH_CHECK(status == 0, "CUDA driver error: ", what, " gave ", status, " for ", kernel);
}

// Makes the context current in this thread, which may have another device's, or none in a backward pass.
class Current {
 public:
  Current(const luthier_launcher& launcher, const char* kernel) : launcher(launcher) {
    check(launcher.get_context(&before), "cuCtxGetCurrent", kernel);
    if (before != launcher.context) check(launcher.set_context(launcher.context), "cuCtxSetCurrent", kernel);
  }
  ~Current() {
    if (before != nullptr && before != launcher.context) launcher.set_context(before);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const luthier_launcher& launcher;
  void* before = nullptr;
};

}  // namespace

void luthier::start(Kernel kernel, const at::Tensor& on, Grid grid, void** arguments) {
  const auto index = static_cast<size_t>(kernel);
  const char* name = NAMES[index];
  const Loaded& here = loaded(on.is_cuda() ? on.device().index() : -1);
  const luthier_launcher& launcher = here.launcher;
  void* function = here.functions[index];
  TORCH_CHECK(function != nullptr, "the kernel ", name, " is not loaded");
  const auto queue = [&](void* stream) {
    check(launcher.launch(function, grid.blocks, 1, 1, grid.threads, 1, 1, 0, stream, arguments, nullptr),
          "cuLaunchKernel", name);
  };
  if (!on.is_cuda()) return queue(nullptr);
  const Current current(launcher, name);
  queue(c10::impl::VirtualGuardImpl(at::kCUDA).getStream(on.device()).native_handle());
}

extern "C" {

// `device` is -1 for the processor.
int luthier_use_launcher(int device, luthier_launcher launcher) {
  return luthier::guarded([=] { loaded(device).launcher = launcher; });
}

int luthier_use_kernel(int device, const char* name, void* function) {
  return luthier::guarded([=] {
    for (size_t i = 0; i < COUNT; ++i)
      if (std::strcmp(NAMES[i], name) == 0) {
        loaded(device).functions[i] = function;
        return;
      }
    TORCH_CHECK(false, "there is no kernel ", name);
  });
}

}  // extern "C"
