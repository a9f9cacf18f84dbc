// queue.h: a queue of the CUDA backend is a device and a stream of it. One thread uses a queue at a
// time; work on one queue runs in order.
#pragma once
#include <cuda_runtime.h>

struct aq_queue {
  int device;
  cudaStream_t stream;
};
