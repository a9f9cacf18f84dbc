// adam.cuh: one AdamW step of one element, as torch.optim.AdamW does it; shared by adam and
// masked_adam.
#pragma once
#include <cmath>

namespace aq::cuda {

// The step's constants, taken in double on the host, where beta^step loses nothing.
template <class T>
struct AdamStep {
  T decay;       // 1 - lr weight_decay
  T mix1, mix2;  // 1 - beta1, 1 - beta2
  T keep2;       // beta2
  T rate;        // lr / (1 - beta1^step)
  T denomScale;  // 1 / sqrt(1 - beta2^step)
  T eps;

  template <class P>
  static AdamStep of(const P& p) {
    AdamStep s;
    s.decay = static_cast<T>(1 - p.lr * p.weight_decay);
    s.mix1 = static_cast<T>(1 - p.beta1);
    s.mix2 = static_cast<T>(1 - p.beta2);
    s.keep2 = static_cast<T>(p.beta2);
    s.rate = static_cast<T>(p.lr / (1 - std::pow(p.beta1, p.step)));
    s.denomScale = static_cast<T>(1 / std::sqrt(1 - std::pow(p.beta2, p.step)));
    s.eps = static_cast<T>(p.eps);
    return s;
  }

  __device__ void apply(T& p, T g, T& m, T& v) const {
    m += mix1 * (g - m);
    v = keep2 * v + mix2 * g * g;
    p = decay * p - rate * m / (sqrt(v) * denomScale + eps);
  }
};

}  // namespace aq::cuda
