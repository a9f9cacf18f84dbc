// adam.cuh: one AdamW step of one element, as torch.optim.AdamW does it; shared by adam and
// masked_adam.
#pragma once
#include <cstdint>

#include "native/cuda/device/step_control.cuh"

namespace aq::cuda {

// What both ops' parameters have in common.
struct AdamSettings {
  double lr, beta1, beta2, eps, weightDecay;
  int32_t step;

  template <class P>
  static AdamSettings of(const P& p) {
    return {p.lr, p.beta1, p.beta2, p.eps, p.weight_decay, p.step};
  }
};

__device__ inline double power(double base, int32_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// The step's constants, taken in double, where beta^step loses nothing. They are computed on the
// device whether or not there is a schedule, so that both ways of giving a step give the same bytes.
template <class T>
struct AdamStep {
  T decay;       // 1 - lr weightDecay
  T mix1, mix2;  // 1 - beta1, 1 - beta2
  T keep2;       // beta2
  T rate;        // lr / (1 - beta1^step)
  T denomScale;  // 1 / sqrt(1 - beta2^step)
  T eps;

  static __device__ AdamStep of(const AdamSettings& s, const StepControl& control) {
    const double lr = control.rate(s.lr);
    const int32_t step = control.step(s.step);
    return {T(1 - lr * s.weightDecay),
            T(1 - s.beta1),
            T(1 - s.beta2),
            T(s.beta2),
            T(lr / (1 - power(s.beta1, step))),
            T(1 / sqrt(1 - power(s.beta2, step))),
            T(s.eps)};
  }

  __device__ void apply(T& p, T g, T& m, T& v) const {
    m += mix1 * (g - m);
    v = keep2 * v + mix2 * g * g;
    p = decay * p - rate * m / (sqrt(v) * denomScale + eps);
  }
};

// A block's step: one thread computes it for all. Every thread of the block calls `load` (after it
// has asked for its data, so that both are waited for together).
template <class T>
struct BlockStep {
  AdamStep<T> step;
  bool mayChange;

  static __device__ BlockStep load(const AdamSettings& settings, const StepControl& control) {
    __shared__ alignas(16) unsigned char bytes[sizeof(BlockStep)];
    auto* const shared = reinterpret_cast<BlockStep*>(bytes);
    if (threadIdx.x == 0) *shared = {AdamStep<T>::of(settings, control), control.mayChange()};
    __syncthreads();
    return *shared;
  }
};

}  // namespace aq::cuda
