// hadamard: rows times a random Hadamard matrix of any size 2^k m (m odd), in O(k + m) per number.
//
// Math      each run of F = 2^k m numbers: y = (x o signs) (H (x) Q) / sqrt(2^k), H Sylvester's of
//           2^k, Q [m, m] orthogonal; the inverse is the transpose, signs on the output.
// Layout    a run is a matrix [2^k, m]: Q acts on its rows, H down its columns. Two fast paths
//           read and write device memory once: hadamard_powers.cu (m = 1) and hadamard_odd.cu. What
//           they refuse (f64, a run beyond shared memory, m > 63, unaligned views) is done here in
//           passes over y: first the products with Q, then the butterflies, up to 16 rows a pass.
// Cost      here: reads and writes F numbers per run 1 + ceil(k / 4) times, 2 m flop per number.
// Roofline  that of the fast paths; here bandwidth times the passes, or the products with Q.
// Versions  v1 (this).
// Numerics  all in T, sums over i in order; the butterflies add in the order of Sylvester's
//           recursion.
#include "native/cuda/kernels/hadamard.h"

#include <cmath>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace {

constexpr int kPassBits = 4;

// y = (x, with signs unless inverse) times Q / sqrt(2^k) within rows of m.
template <class T>
__global__ __launch_bounds__(kElementThreads) void multiplyRows(HadamardRuns<T> h, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count; k += stride) {
    const int64_t row = k / h.odd, j = k - row * h.odd;
    const int64_t place = k % h.features - j;  // of the row, in its run
    T sum = 0;
    for (int64_t i = 0; i < h.odd; i++) {
      const T entry = !h.q ? T(1) : (h.inverse ? h.q[j * h.odd + i] : h.q[i * h.odd + j]);
      const T x = h.x[row * h.odd + i];
      sum += (h.inverse ? x : x * h.signs[place + i]) * entry;
    }
    sum *= h.scale;
    h.y[k] = h.inverse && h.power == 0 ? sum * h.signs[place + j] : sum;
  }
}

// The butterflies of kBits bits from bit `first` on of the row's number, in place. `signs` is given
// to the last pass of an inverse.
template <class T, int kBits>
__global__ __launch_bounds__(kElementThreads) void passDown(T* y, const T* signs, int64_t groups,
                                                            int64_t span, int64_t features) {
  // span = 2^first m: numbers between the rows of a group.
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t g = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; g < groups; g += stride) {
    const int64_t high = g / span;
    const int64_t base = (high << kBits) * span + (g - high * span);
    T x[1 << kBits];
#pragma unroll
    for (int e = 0; e < (1 << kBits); e++) x[e] = y[base + e * span];
    hadamardButterflies<kBits>(x);
#pragma unroll
    for (int e = 0; e < (1 << kBits); e++) {
      const int64_t at = base + e * span;
      y[at] = signs ? x[e] * signs[at % features] : x[e];
    }
  }
}

template <class T, int kBits>
int32_t launchPass(aq_queue* queue, const HadamardRuns<T>& h, int first, aq_error* err) {
  const bool isLast = first + kBits == h.power;
  const int64_t groups = h.runs * h.features >> kBits;
  passDown<T, kBits><<<elementBlocks(groups), kElementThreads, 0, queue->stream>>>(
      h.y, isLast && h.inverse ? h.signs : nullptr, groups, h.odd << first, h.features);
  LAUNCH_CHECK("hadamard (butterflies)");
  return AQ_OK;
}

template <class T>
int32_t inPasses(aq_queue* queue, const HadamardRuns<T>& h, aq_error* err) {
  const int64_t count = h.runs * h.features;
  multiplyRows<T><<<elementBlocks(count), kElementThreads, 0, queue->stream>>>(h, count);
  LAUNCH_CHECK("hadamard (odd factor)");
  int first = 0;
  for (; h.power - first >= kPassBits; first += kPassBits) {
    if (launchPass<T, kPassBits>(queue, h, first, err) != AQ_OK) return err->code;
  }
  switch (h.power - first) {
    case 1:
      return launchPass<T, 1>(queue, h, first, err);
    case 2:
      return launchPass<T, 2>(queue, h, first, err);
    case 3:
      return launchPass<T, 3>(queue, h, first, err);
    default:
      return AQ_OK;
  }
}

template <class T>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view& out, bool inverse, aq_error* err) {
  HadamardRuns<T> h = {};
  h.x = static_cast<const T*>(in[0].data);
  h.signs = static_cast<const T*>(in[1].data);
  h.q = static_cast<const T*>(in[2].data);
  h.y = static_cast<T*>(out.data);
  h.features = numel(in[1]);
  h.runs = numel(in[0]) / h.features;
  for (h.odd = h.features; h.odd % 2 == 0; h.odd /= 2) h.power++;
  h.inverse = inverse;
  h.scale = static_cast<T>(1 / std::sqrt(double(h.features / h.odd)));
  if constexpr (sizeof(T) == sizeof(float)) {
    bool taken = false;
    if (hadamardPowers(queue, h, &taken, err) != AQ_OK) return err->code;
    if (!taken && hadamardOdd(queue, h, &taken, err) != AQ_OK) return err->code;
    if (taken) return AQ_OK;
  }
  return inPasses(queue, h, err);
}

}  // namespace

int32_t hadamard(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const bool inverse = static_cast<const aq_hadamard_params*>(params)->inverse != 0;
  if (numel(in[0]) == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return run<T>(queue, in, out[0], inverse, err); });
}

}  // namespace aq::cuda
