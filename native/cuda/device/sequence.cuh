// sequence.cuh: kernels that overlap with those beside them in the stream, from Hopper on (EarlyLaunch
// in launch.h).
#pragma once

namespace aq::cuda {

// The next kernel may be started as soon as all blocks have got here, if it was launched so; it then
// waits for the end of this one.
__device__ inline void letNextLaunch() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits for the end of the kernel before, if this one may have started early: before anything is read
// or written.
__device__ inline void awaitLast() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

}  // namespace aq::cuda
