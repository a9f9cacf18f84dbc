// async_copy.cuh: 16 bytes at a time from global to shared memory, past the registers.
#pragma once
#include <cstdint>

namespace aq::cuda {

__device__ inline void copyAsync(void* to, const void* from) {
  const auto target = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(from) : "memory");
}

// What this thread has copied so far is there, for this thread.
__device__ inline void waitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace aq::cuda
