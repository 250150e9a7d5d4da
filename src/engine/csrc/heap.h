// Allocator of CPU tensors.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

namespace luthier {

// Aligns malloc's memory itself. glibc's aligned requests (before 2.38) allocate more than they return and trim it,
// so that the memory of a freed tensor is too small for another of the same size: activations, which are allocated
// in the same sizes at each step, would leave holes everywhere.
class Heap final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, device};
    void* whole = bytes <= SIZE_MAX - ALIGNMENT ? std::malloc(bytes + ALIGNMENT) : nullptr;
    TORCH_CHECK(whole != nullptr, "not enough memory: ", bytes, " bytes were requested");
    // malloc aligns to two words, so there is room for one word before the returned address.
    void* data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(whole) + ALIGNMENT) & ~(ALIGNMENT - 1));
    static_cast<void**>(data)[-1] = whole;
    if (bytes >= LARGE) in_huge_pages(reinterpret_cast<uintptr_t>(data), bytes);
    return {data, data, &release, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // Replaces libtorch's allocator for all later allocations.
  static void install() {
    // The process keeps the memory of freed activations: releasing it costs a page fault per 4 KiB in the next
    // step.
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, INT32_MAX);
    static Heap heap;
    c10::SetCPUAllocator(&heap, UINT8_MAX);
  }

 private:
  static constexpr uintptr_t ALIGNMENT = 64, HUGE_PAGE = 2 << 20;
  // Smaller tensors hold few whole pages of that size.
  static constexpr size_t LARGE = 4 * HUGE_PAGE;

  // Reading much memory takes less time if fewer pages must be looked up. Linux may refuse, which does no harm.
  static void in_huge_pages(uintptr_t data, size_t bytes) {
    const uintptr_t first = (data + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), last = (data + bytes) & ~(HUGE_PAGE - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }

  static void release(void* data) {
    if (data != nullptr) std::free(static_cast<void**>(data)[-1]);
  }
};

}  // namespace luthier
