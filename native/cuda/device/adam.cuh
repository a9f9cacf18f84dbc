// adam.cuh: one AdamW step of one element, as torch.optim.AdamW does it; shared by adam and
// masked_adam.
#pragma once
#include <cstdint>

#include "native/cuda/device/reduce.cuh"
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

// A root to a unit in the last place and a quotient to two: a step's own rounding is coarser by far.
__device__ inline float quickRoot(float x) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ inline double quickRoot(double x) { return sqrt(x); }
__device__ inline float quickQuotient(float x, float y) { return __fdividef(x, y); }
__device__ inline double quickQuotient(double x, double y) { return x / y; }

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

  __device__ void apply(T& p, T g, T& m, T& v) const {
    m += mix1 * (g - m);
    v = keep2 * v + mix2 * g * g;
    p = decay * p - quickQuotient(rate * m, quickRoot(v) * denomScale + eps);
  }
};

// A block's step: two threads compute half of it each for all. Every thread of the block, which has
// more than kWarp, calls `load` (after it has asked for its data, so that both are waited for together).
template <class T>
struct BlockStep {
  AdamStep<T> step;
  bool mayChange;

  static __device__ BlockStep load(const AdamSettings& s, const StepControl& control) {
    __shared__ alignas(16) unsigned char bytes[sizeof(BlockStep)];
    auto* const shared = reinterpret_cast<BlockStep*>(bytes);
    AdamStep<T>& step = shared->step;
    if (threadIdx.x == 0) {
      const double lr = control.rate(s.lr);
      step.decay = T(1 - lr * s.weightDecay);
      step.mix1 = T(1 - s.beta1);
      step.rate = T(lr / (1 - power(s.beta1, control.step(s.step))));
      step.eps = T(s.eps);
    } else if (threadIdx.x == kWarp) {
      step.mix2 = T(1 - s.beta2);
      step.keep2 = T(s.beta2);
      step.denomScale = T(1 / sqrt(1 - power(s.beta2, control.step(s.step))));
      shared->mayChange = control.mayChange();
    }
    __syncthreads();
    return *shared;
  }
};

}  // namespace aq::cuda
