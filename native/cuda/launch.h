// launch.h: sizes of views, grids for the elementwise kernels, and launches that overlap.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

inline int64_t numel(const aq_view& v) {
  int64_t n = 1;
  for (int32_t i = 0; i < v.rank; i++) n *= v.dim[i];
  return n;
}

// Elements of a row: the last dimension, 1 for a scalar.
inline int64_t lastDim(const aq_view& v) { return v.rank > 0 ? v.dim[v.rank - 1] : 1; }

// Threads of an elementwise block, and blocks of a grid-stride loop: enough to fill the largest
// GPU several times over (so that a block's end is not waited for), and few enough that the
// launch itself costs nothing.
inline constexpr int kElementThreads = 256;
inline unsigned elementBlocks(int64_t items) {
  constexpr int64_t kMost = 8192;
  return unsigned(std::clamp<int64_t>((items + kElementThreads - 1) / kElementThreads, 1, kMost));
}

// How a kernel is launched that may start before the kernel in front of it is over, for whose end it
// then waits itself, in clusters of `cluster` blocks along x. Before Hopper there are neither.
struct EarlyLaunch {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};

  EarlyLaunch(const aq_queue* queue, dim3 grid, int threads, int sharedBytes = 0, int cluster = 1) {
    config.gridDim = grid;
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(sharedBytes);
    config.stream = queue->stream;
    config.attrs = attributes;
    if (queue->computeCapability < 90) return;
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    if (cluster == 1) return;
    cudaLaunchAttribute& dimension = attributes[config.numAttrs++];
    dimension.id = cudaLaunchAttributeClusterDimension;
    dimension.val.clusterDim.x = unsigned(cluster);
    dimension.val.clusterDim.y = dimension.val.clusterDim.z = 1;
  }
  EarlyLaunch(const EarlyLaunch&) = delete;
  EarlyLaunch& operator=(const EarlyLaunch&) = delete;
};

}  // namespace aq::cuda
