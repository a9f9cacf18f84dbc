// silu.cuh: the gate of a SwiGLU MLP and its gradient, number by number.
#pragma once
#include <type_traits>

namespace aq::cuda {

template <class T>
__device__ inline T sigmoid(T x) {
  if constexpr (std::is_same_v<T, float>) {
    // The fast quotient is 0 for divisors above 2^126, where the sigmoid is 0 to f32 as well.
    return __fdividef(1.0f, 1.0f + expf(-x));
  } else {
    return 1 / (1 + ::exp(-x));
  }
}

// x: gate, up.
template <class T>
struct SiluMul {
  __device__ void operator()(const T (&x)[2], T (&y)[1]) const {
    y[0] = x[0] * sigmoid(x[0]) * x[1];
  }
};

// x: gate, up, the gradient of y; y: those of gate and up.
template <class T>
struct SiluMulGrad {
  __device__ void operator()(const T (&x)[3], T (&y)[2]) const {
    const T gate = x[0], up = x[1], g = x[2];
    const T s = sigmoid(gate);
    y[0] = g * up * (s * (1 + gate * (1 - s)));
    y[1] = g * (gate * s);
  }
};

}  // namespace aq::cuda
