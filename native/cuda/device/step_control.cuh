// step_control.cuh: the inputs before an optimizer's own, on the device: whether a step may change
// anything, its rate and its number. They are read by the kernel, so that a step waits for nobody
// and a recorded one can be run again with other values.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"

namespace aq::cuda {

struct StepControl {
  static constexpr int kInputs = 2;
  const int32_t* guard;    // [1], or null: it may
  const double* schedule;  // rate and step, or null: the parameters stand

  explicit StepControl(const aq_view* in)
      : guard(static_cast<const int32_t*>(in[0].data)),
        schedule(static_cast<const double*>(in[1].data)) {}

  __device__ bool mayChange() const { return !guard || *guard != 0; }
  __device__ double rate(double lr) const { return schedule ? lr * schedule[0] : lr; }
  __device__ int32_t step(int32_t given) const { return schedule ? int32_t(schedule[1]) : given; }
};

}  // namespace aq::cuda
