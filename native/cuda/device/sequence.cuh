// sequence.cuh: kernels that overlap with those beside them in the stream (EarlyLaunch in launch.h).
// Nothing before Hopper.
#pragma once

namespace aq::cuda {

// Returns when the kernel before this one on the stream is over and what it wrote can be seen: before
// anything of it is read, or written over.
__device__ inline void waitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Once every block has called this or ended, the blocks of the next kernel may start where there is
// room, up to their own waitForKernelBefore. The best time is when the last loads are under way.
__device__ inline void letNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The first thing that a pass (passes.h) does, and the last: what runs beside the pass in front of it
// waits at its end, with one thread, so that it is not over before that one.
__device__ inline void startPass(bool isBeside) {
  if (!isBeside) waitForKernelBefore();
  letNextKernelStart();
}
__device__ inline void endPass(bool isBeside) {
  if (isBeside && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) waitForKernelBefore();
}

}  // namespace aq::cuda
