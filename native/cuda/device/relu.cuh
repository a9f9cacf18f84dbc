// relu.cuh: max(x, 0) and its gradient, number by number. NaN stays.
#pragma once

namespace aq::cuda {

template <class T>
struct Relu {
  __device__ void operator()(const T (&x)[1], T (&y)[1]) const { y[0] = x[0] < 0 ? T(0) : x[0]; }
};

// x: the input or the output, which are above zero together, and the gradient of the output.
template <class T>
struct ReluGrad {
  __device__ void operator()(const T (&x)[2], T (&y)[1]) const { y[0] = x[0] > 0 ? x[1] : T(0); }
};

}  // namespace aq::cuda
