// prefetch.cuh: memory that is needed later, brought nearer while something else is computed.
#pragma once

namespace aq::cuda {

// The line of an address in global memory, to the L2 cache.
__device__ inline void prefetchL2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace aq::cuda
