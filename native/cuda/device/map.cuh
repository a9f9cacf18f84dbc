// map.cuh: elementwise kernels: a function applied to every element of kIn streams of T, with its
// results in kOut streams. One launch, 16-byte accesses where the addresses allow, any length.
//
// A thread has all its loads in flight before its first store, so an output may be one of the
// inputs (in-place ops), as long as both start at the same address.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

template <class T, int kIn, int kOut>
struct Streams {
  const T* in[kIn];
  T* out[kOut];
};

// Vectors of every input that a thread loads at once. With few inputs it takes several to keep
// enough bytes in flight; with many, registers would go to waste.
template <int kIn>
inline constexpr int kMapUnroll = kIn == 1 ? 4 : (kIn == 2 ? 2 : 1);

// The first `vectors` vectors are moved whole; the rest, or everything where an address is not
// aligned (vectors 0), element by element.
template <class T, int kIn, int kOut, class F>
__global__ __launch_bounds__(kElementThreads) void mapStreams(Streams<T, kIn, kOut> s,
                                                              int64_t vectors, int64_t count, F f) {
  constexpr int kVec = kVecWidth<T>, kUnroll = kMapUnroll<kIn>;
  waitForKernelBefore();
  const int64_t first = int64_t(blockIdx.x) * (kElementThreads * kUnroll) + threadIdx.x;
  Vec<T, kVec> x[kUnroll][kIn];
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = first + u * kElementThreads;
    if (k >= vectors) continue;
#pragma unroll
    for (int i = 0; i < kIn; i++) x[u][i] = loadVec<T, kVec>(s.in[i], k);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = first + u * kElementThreads;
    if (k >= vectors) continue;
    Vec<T, kVec> y[kOut];
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      T arguments[kIn], results[kOut];
#pragma unroll
      for (int i = 0; i < kIn; i++) arguments[i] = x[u][i].lane[e];
      f(arguments, results);
#pragma unroll
      for (int i = 0; i < kOut; i++) y[i].lane[e] = results[i];
    }
#pragma unroll
    for (int i = 0; i < kOut; i++) storeVec(s.out[i], k, y[i]);
  }
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = vectors * kVec + int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count;
       k += stride) {
    T arguments[kIn], results[kOut];
#pragma unroll
    for (int i = 0; i < kIn; i++) arguments[i] = s.in[i][k];
    f(arguments, results);
#pragma unroll
    for (int i = 0; i < kOut; i++) s.out[i][k] = results[i];
  }
}

// Enqueues f over `count` elements. `op` names the launch in an error.
template <class T, int kIn, int kOut, class F>
int32_t mapElements(aq_queue* queue, const char* op, int64_t count,
                    const Streams<T, kIn, kOut>& streams, const F& f, aq_error* err) {
  if (count == 0) return AQ_OK;
  const auto aligned = [](const T* data) { return isAligned16(data); };
  const bool isWide = std::all_of(streams.in, streams.in + kIn, aligned) &&
                      std::all_of(streams.out, streams.out + kOut, aligned);
  const int64_t vectors = isWide ? count / kVecWidth<T> : 0;
  constexpr int64_t kPerBlock = kElementThreads * kMapUnroll<kIn>;
  const unsigned blocks =
      vectors > 0 ? unsigned((vectors + kPerBlock - 1) / kPerBlock) : elementBlocks(count);
  const EarlyLaunch shape(queue, dim3(blocks), kElementThreads);
  const cudaError_t status =
      cudaLaunchKernelEx(&shape.config, mapStreams<T, kIn, kOut, F>, streams, vectors, count, f);
  return status == cudaSuccess ? AQ_OK : failCuda(err, status, op);
}

// The streams of a kernel's views: the first kIn inputs and kOut outputs.
template <class T, int kIn, int kOut>
Streams<T, kIn, kOut> streamsOf(const aq_view* in, const aq_view* out) {
  Streams<T, kIn, kOut> streams;
  for (int i = 0; i < kIn; i++) streams.in[i] = static_cast<const T*>(in[i].data);
  for (int i = 0; i < kOut; i++) streams.out[i] = static_cast<T*>(out[i].data);
  return streams;
}

}  // namespace aq::cuda
