// fill, cast, add, axpy, mul, exp: loops over flat memory.
//
// Math      fill: x = value.  cast: y = x, to nearest and ties to even; integers saturate. add: y =
//           a + alpha b.  axpy: y += alpha x.  mul: y = alpha a b.  exp: y = e^(scale x).
// Layout    flat; 16-byte accesses of the wider type where the addresses allow, else one by one. cast
//           runs beside a pass that it does not depend on (passes.h).
// Cost      every element is read and written once: bandwidth-bound.
// Roofline  add of two 22.5 M f32: 270 MB -> 81 us at 3.35 TB/s (H100 SXM data sheet). Measured on
//           an H100 80GB HBM3, in shares of what a copy reaches there (2.95 TB/s): fill, add, axpy,
//           mul and f32 to bf16 99 %, exp and bf16 to f32 95 %.
// Versions  v1 one element a thread and round; v2 vectors, several in flight (this).
// Numerics  a conversion rounds once: it goes through float where float holds the source exactly,
//           else through double, which holds every type.
#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/map.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/passes.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

// Vectors that a thread of fill or cast has in flight.
constexpr int kUnroll = 4;

inline unsigned vectorBlocks(int64_t vectors, int64_t count) {
  constexpr int64_t kPerBlock = kElementThreads * kUnroll;
  return vectors > 0 ? unsigned((vectors + kPerBlock - 1) / kPerBlock) : elementBlocks(count);
}

// ---------------------------------------------------------------- fill

template <class T>
__global__ __launch_bounds__(kElementThreads) void fillAll(T* x, int64_t vectors, int64_t count,
                                                           double value) {
  constexpr int kVec = kVecWidth<T>;
  const T converted = fromDouble<T>(value);
  Vec<T, kVec> whole;
#pragma unroll
  for (int e = 0; e < kVec; e++) whole.lane[e] = converted;
  const int64_t first = int64_t(blockIdx.x) * (kElementThreads * kUnroll) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = first + u * kElementThreads;
    if (k < vectors) storeVec(x, k, whole);
  }
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = vectors * kVec + int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count;
       k += stride) {
    x[k] = converted;
  }
}

// ---------------------------------------------------------------- cast

// What a conversion goes through: exact for From, and as cheap as can be.
template <class From, class To>
using Middle = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<From, int32_t> ||
                                      std::is_same_v<To, double>,
                                  double, float>;

__device__ inline float toFloat(float x) { return x; }
__device__ inline float toFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float toFloat(__half x) { return __half2float(x); }
__device__ inline float toFloat(int8_t x) { return float(x); }
__device__ inline float toFloat(uint8_t x) { return float(x); }

template <class To>
__device__ inline To fromFloat(float x) {
  if constexpr (std::is_same_v<To, int32_t>) {
    return __float2int_rn(x);  // saturates, and NaN becomes 0
  } else if constexpr (std::numeric_limits<To>::is_integer) {
    return isnan(x) ? To(0) : To(fminf(fmaxf(rintf(x), float(kLowest<To>)), float(kHighest<To>)));
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<To, __half>) {
    return __float2half_rn(x);
  } else {
    return To(x);
  }
}

template <class From, class To>
__device__ inline To convert(From x) {
  if constexpr (std::is_same_v<Middle<From, To>, float>) {
    return fromFloat<To>(toFloat(x));
  } else {
    return fromDouble<To>(toDouble(x));
  }
}

template <class From, class To>
inline constexpr int kCastWidth = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));

template <class From, class To>
__global__ __launch_bounds__(kElementThreads) void castAll(const From* __restrict__ x,
                                                           To* __restrict__ y, int64_t vectors,
                                                           int64_t count, bool isBeside) {
  constexpr int kVec = kCastWidth<From, To>;
  startPass(isBeside);
  const int64_t first = int64_t(blockIdx.x) * (kElementThreads * kUnroll) + threadIdx.x;
  Vec<From, kVec> source[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = first + u * kElementThreads;
    if (k < vectors) source[u] = loadVec<From, kVec>(x, k);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = first + u * kElementThreads;
    Vec<To, kVec> result;
#pragma unroll
    for (int e = 0; e < kVec; e++) result.lane[e] = convert<From, To>(source[u].lane[e]);
    if (k < vectors) storeVec(y, k, result);
  }
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = vectors * kVec + int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count;
       k += stride) {
    y[k] = convert<From, To>(x[k]);
  }
  endPass(isBeside);
}

// ---------------------------------------------------------------- arithmetic

template <class T>
struct Add {
  T alpha;
  __device__ void operator()(const T (&x)[2], T (&y)[1]) const { y[0] = x[0] + alpha * x[1]; }
};

template <class T>
struct Multiply {
  T alpha;
  __device__ void operator()(const T (&x)[2], T (&y)[1]) const { y[0] = alpha * x[0] * x[1]; }
};

template <class T>
struct Exponential {
  T scale;
  __device__ void operator()(const T (&x)[1], T (&y)[1]) const {
    if constexpr (std::is_same_v<T, float>) {
      y[0] = expf(scale * x[0]);
    } else {
      y[0] = ::exp(scale * x[0]);
    }
  }
};

}  // namespace

int32_t fill(aq_queue* queue, const aq_view* in, int32_t, const aq_view*, int32_t,
             const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t n = numel(in[0]);
  const double value = static_cast<const aq_fill_params*>(params)->value;
  if (n == 0) return AQ_OK;
  return visitAny(in[0].dtype, err, [&]<class T>() -> int32_t {
    T* const x = static_cast<T*>(in[0].data);
    const int64_t vectors = isAligned16(x) ? n / kVecWidth<T> : 0;
    fillAll<T>
        <<<vectorBlocks(vectors, n), kElementThreads, 0, queue->stream>>>(x, vectors, n, value);
    LAUNCH_CHECK("fill");
    return AQ_OK;
  });
}

int32_t cast(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
             aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t n = numel(in[0]);
  if (n == 0) return AQ_OK;
  return visitAny(in[0].dtype, err, [&]<class From>() -> int32_t {
    return visitAny(out[0].dtype, err, [&]<class To>() -> int32_t {
      if constexpr (std::is_same_v<From, To>) {
        CUDA_CHECK(cudaMemcpyAsync(out[0].data, in[0].data, sizeof(To) * size_t(n),
                                   cudaMemcpyDeviceToDevice, queue->stream));
      } else {
        const From* const x = static_cast<const From*>(in[0].data);
        To* const y = static_cast<To*>(out[0].data);
        const bool isWide = isAligned16(x) && isAligned16(y);
        const int64_t vectors = isWide ? n / kCastWidth<From, To> : 0;
        const bool isBeside = queue->passes->join(queue->calls, in, 1, out, 1);
        const EarlyLaunch launch(queue, dim3(vectorBlocks(vectors, n)), kElementThreads);
        CUDA_CHECK(
            cudaLaunchKernelEx(&launch.config, castAll<From, To>, x, y, vectors, n, isBeside));
      }
      return AQ_OK;
    });
  });
}

int32_t add(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
            const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double alpha = static_cast<const aq_add_params*>(params)->alpha;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "add", numel(in[0]), streamsOf<T, 2, 1>(in, out), Add<T>{T(alpha)},
                       err);
  });
}

int32_t axpy(aq_queue* queue, const aq_view* in, int32_t, const aq_view*, int32_t,
             const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double alpha = static_cast<const aq_axpy_params*>(params)->alpha;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "axpy", numel(in[0]), streamsOf<T, 2, 1>(in, in), Add<T>{T(alpha)},
                       err);
  });
}

int32_t mul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
            const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double alpha = static_cast<const aq_mul_params*>(params)->alpha;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "mul", numel(in[0]), streamsOf<T, 2, 1>(in, out),
                       Multiply<T>{T(alpha)}, err);
  });
}

int32_t exp(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
            const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double scale = static_cast<const aq_exp_params*>(params)->scale;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "exp", numel(in[0]), streamsOf<T, 1, 1>(in, out),
                       Exponential<T>{T(scale)}, err);
  });
}

}  // namespace aq::cuda
