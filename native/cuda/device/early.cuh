// early.cuh: the two ends of a launch that may overlap (EarlyLaunch, launch.h): where the kernel after
// this one may begin, and where this one waits for the kernel before it. Nothing before Hopper.
#pragma once

namespace aq::cuda {

// Once every block has called this or ended, blocks of the next kernel take the room that there is, up
// to their own waitForKernelBefore.
__device__ inline void letNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Returns when the kernel before this one on the stream is over and what it wrote can be read.
__device__ inline void waitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

}  // namespace aq::cuda
