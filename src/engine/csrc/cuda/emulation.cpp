// The kernels for CUDA as the processor runs them, by name. Only tests refer to it, so that programs are linked without
// it.

#include "emulation.h"

#include <mutex>

#include "list.h"
#include "interface.h"

// Each program is a translation unit of its own on CUDA.
#include "device.h"

namespace elementwise {
#include "elementwise.cu"
}
namespace norm {
#include "norm.cu"
}
namespace cross_entropy {
#include "cross_entropy.cu"
}
namespace adamw {
#include "adamw.cu"
}
namespace nf4 {
#include "nf4.cu"
}
namespace blocks {
#include "blocks.cu"
}

namespace {

struct Named {
  const char* name;
  void (*call)(void**);
};

#define NAMED(program, kernel) {#kernel, &emulation::Caller<&program::kernel>::call},

constexpr Named KERNELS[] = {LUTHIER_KERNELS(NAMED)};

#undef NAMED

}  // namespace

extern "C" {

// The kernel of this name, for luthier_emulated_launch; null if there is none.
void* luthier_emulated_kernel(const char* name) {
  for (const Named& kernel : KERNELS)
    if (std::strcmp(kernel.name, name) == 0) return reinterpret_cast<void*>(kernel.call);
  return nullptr;
}

// Has the signature of CUDA's cuLaunchKernel.
int luthier_emulated_launch(void* function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads,
                            unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream,
                            void** arguments, void** extra) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> held(one_at_a_time);
  return emulation::launch(function, blocks, blocks_y, blocks_z, threads, threads_y, threads_z, shared_bytes, stream,
                           arguments, extra);
}

}  // extern "C"
