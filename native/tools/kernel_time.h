// kernel_time.h: time of a kernel on a CUDA device, for kernel_check.
#pragma once
#include "native/tools/kernel_sample.h"

namespace aq::tools {

struct Timing {
  double seconds;   // of one call
  int64_t bytes;    // of all inputs and outputs, and of what is written in place once more
  bool isCaptured;  // false: the op waits for the device, and the time of launches counts
};

// The median over many calls of the op on the sample's tensors. `queue` is of the CUDA backend.
Timing timeKernel(const char* op, const std::shared_ptr<Queue>& queue, const Sample& sample);

// Bytes a second of a large copy on the device, read and written, for comparison.
double copyRate(const std::shared_ptr<Queue>& queue);

}  // namespace aq::tools
