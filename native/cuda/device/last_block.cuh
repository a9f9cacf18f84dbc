// last_block.cuh: a second stage in the same launch: what the blocks of a grid have found out is
// finished by whichever of them ends last.
#pragma once
#include <cstdint>

namespace aq::cuda {

// Called by all threads of a block of a one- or two-dimensional grid, once thread 0 has written what the
// block found out. True in every thread of the last block to call it, which then sees what all have written.
// `ticket` is the queue's (queue.h): 0 between kernels.
__device__ inline bool isLastBlock(uint32_t* ticket) {
  __shared__ bool isLast;
  if (threadIdx.x == 0) {
    // Wraps to 0 at the last one, for the next kernel. Release for this block's part, and acquire for
    // those of the others: quicker than two fences around it.
    const uint32_t last = gridDim.x * gridDim.y - 1;
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(ticket), "r"(last)
                 : "memory");
    isLast = before == last;
  }
  __syncthreads();
  return isLast;
}

// The same, with one value of each block in parts, those of blocks beside each other together.
template <class T>
__device__ inline bool isLastBlock(uint32_t* ticket, T* parts, T value) {
  if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = value;
  return isLastBlock(ticket);
}

}  // namespace aq::cuda
