// Which operations libtorch's profiler (Kineto) sees between two points, for measurements.
//
// For failures see seam.h.

#include <kineto/ActivityType.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "seam.h"

using luthier::guarded;
using torch::autograd::profiler::ActivityType;

namespace {

// Whether an event is work of the device: on CUDA not what the host does for it, on a processor only operations.
bool is_work(libkineto::ActivityType type, bool cuda) {
  switch (type) {
    case libkineto::ActivityType::CONCURRENT_KERNEL:
    case libkineto::ActivityType::GPU_MEMCPY:
    case libkineto::ActivityType::GPU_MEMSET:
      return cuda;
    case libkineto::ActivityType::CPU_OP:
      return !cuda;
    default:
      return false;
  }
}

}  // namespace

extern "C" {

// Begins to record. The same thread must end it.
int luthier_profile_start(int cuda) {
  return guarded([=] {
    const torch::autograd::profiler::ProfilerConfig config(torch::autograd::profiler::ProfilerState::KINETO);
    std::set<ActivityType> activities{ActivityType::CPU};
    if (cuda != 0) activities.insert(ActivityType::CUDA);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities);
  });
}

// Ends recording, after the work that was launched, and calls note(owner, name, length, start, end, thread) for each
// event, in nanoseconds.
int luthier_profile_stop(int cuda, void (*note)(void*, const char*, size_t, uint64_t, uint64_t, uint64_t), void* owner) {
  return guarded([=] {
    const auto result = torch::autograd::profiler::disableProfiler();
    for (const auto& event : result->events()) {
      if (event.isHiddenEvent() || !is_work(static_cast<libkineto::ActivityType>(event.activityType()), cuda != 0)) continue;
      const std::string name = event.name();
      note(owner, name.data(), name.size(), event.startNs(), event.endNs(), event.startThreadId());
    }
  });
}

}  // extern "C"
