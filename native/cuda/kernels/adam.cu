// adam, keep_away, sign_step: one step of an optimizer on every entry of tensors of any shapes, and
// the floor under magnitudes.
//
// Math      adam: m <- beta1 m + (1-beta1) g, v <- beta2 v + (1-beta2) g^2,
//             p <- (1 - lr wd) p - lr/(1-beta1^t) m / (sqrt(v / (1-beta2^t)) + eps).
//           keep_away: p <- sign(p) max(|p|, limit), zeros and NaN stay.
//           sign_step: v <- clamp(v - lr sign(g), -limit, limit), sign(0) = sign(NaN) = 0.
// Layout    flat streams, in place. adam, sign_step: up to 48 tensors a launch (groups.cuh), a block
//           takes a piece of one of them, two 16-byte vectors of each stream a thread; keep_away:
//           map.cuh.
// Cost      adam reads 4 and writes 3 numbers per entry: 28 B (f32), ~12 flop; keep_away 1 and 1,
//           sign_step 2 and 1 (a short gradient: half a number): bandwidth-bound. Tensors of a few
//           thousand entries, of which a step has a dozen, are bound by the launch.
// Roofline  adam of 16.8 M entries f32: 470 MB -> 140 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured on an H100 80GB HBM3: 159 us = 2.95 TB/s, what a copy reaches; sign_step with f32
//           and bf16 gradients, 68.6 and 58.0 us, too; keep_away 98 %. adam of 40 tensors of 4096
//           entries: 3.5 us, of 64 entries: 2.8 us (in a graph).
// Versions  v1 vectors and their tail as two launches, grid-stride: 166 us; v2 one launch a tensor:
//           162 us; v3 one launch for many tensors, two vectors a thread, with guard and schedule read
//           on the device (this): 159 us.
// Numerics  constants of the step in double, the step itself in T.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/adam.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/groups.cuh"
#include "native/cuda/device/map.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

// Vectors of each stream that a thread has in flight, and elements that a block takes.
constexpr int kUnroll = 2;
template <class T>
constexpr int64_t kPiece = int64_t(kElementThreads) * kUnroll* kVecWidth<T>;

// ---------------------------------------------------------------- adam

template <class T>
__global__ __launch_bounds__(kElementThreads) void adamGroups(
    const __grid_constant__ Groups<4> groups, AdamSettings settings, StepControl control) {
  constexpr int kVec = kVecWidth<T>;
  const int group = groups.find(blockIdx.x);
  const int64_t count = groups.count[group];
  const int64_t begin = int64_t(blockIdx.x - groups.firstBlock[group]) * kPiece<T>;
  T* const p = static_cast<T*>(groups.data[group][0]);
  const T* const g = static_cast<const T*>(groups.data[group][1]);
  T* const m = static_cast<T*>(groups.data[group][2]);
  T* const v = static_cast<T*>(groups.data[group][3]);
  const int64_t vectors = groups.isWide[group] ? count / kVec : 0;

  Vec<T, kVec> pk[kUnroll], gk[kUnroll], mk[kUnroll], vk[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = begin / kVec + u * kElementThreads + threadIdx.x;
    if (k >= vectors) continue;
    pk[u] = loadVec<T, kVec>(p, k);
    gk[u] = loadVec<T, kVec>(g, k);
    mk[u] = loadVec<T, kVec>(m, k);
    vk[u] = loadVec<T, kVec>(v, k);
  }
  const auto [step, mayChange] = BlockStep<T>::load(settings, control);
  if (!mayChange) return;
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = begin / kVec + u * kElementThreads + threadIdx.x;
    if (k >= vectors) continue;
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      step.apply(pk[u].lane[e], gk[u].lane[e], mk[u].lane[e], vk[u].lane[e]);
    }
    storeVec(p, k, pk[u]);
    storeVec(m, k, mk[u]);
    storeVec(v, k, vk[u]);
  }
  // What is left of the piece: a short last vector, or all of it where addresses are not aligned.
  const int64_t end = begin + kPiece<T> < count ? begin + kPiece<T> : count;
  const int64_t done = vectors * kVec > begin ? vectors * kVec : begin;
  for (int64_t i = done + threadIdx.x; i < end; i += kElementThreads) {
    step.apply(p[i], g[i], m[i], v[i]);
  }
}

// ---------------------------------------------------------------- sign_step

template <class T>
struct SignStep {
  T rate, limit;
  __device__ T operator()(T v, T g) const {
    const T next = v - (g > 0 ? rate : (g < 0 ? -rate : T(0)));
    const T atMost = next > limit ? limit : next;
    return atMost < -limit ? -limit : atMost;
  }
};

// S: the type of the gradient. A vector holds as many elements of both.
template <class T, class S>
__global__ __launch_bounds__(kElementThreads) void signStepGroups(
    const __grid_constant__ Groups<2> groups, double lr, T limit, StepControl control) {
  constexpr int kVec = kVecWidth<T>;
  const int group = groups.find(blockIdx.x);
  const int64_t count = groups.count[group];
  const int64_t begin = int64_t(blockIdx.x - groups.firstBlock[group]) * kPiece<T>;
  T* const v = static_cast<T*>(groups.data[group][0]);
  const S* const g = static_cast<const S*>(groups.data[group][1]);
  const int64_t vectors = groups.isWide[group] ? count / kVec : 0;

  Vec<T, kVec> vk[kUnroll];
  Vec<S, kVec> gk[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = begin / kVec + u * kElementThreads + threadIdx.x;
    if (k >= vectors) continue;
    vk[u] = loadVec<T, kVec>(v, k);
    gk[u] = loadVec<S, kVec>(g, k);
  }
  if (!control.mayChange()) return;
  const SignStep<T> step = {T(control.rate(lr)), limit};
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int64_t k = begin / kVec + u * kElementThreads + threadIdx.x;
    if (k >= vectors) continue;
#pragma unroll
    for (int e = 0; e < kVec; e++) vk[u].lane[e] = step(vk[u].lane[e], T(gk[u].lane[e]));
    storeVec(v, k, vk[u]);
  }
  const int64_t end = begin + kPiece<T> < count ? begin + kPiece<T> : count;
  const int64_t done = vectors * kVec > begin ? vectors * kVec : begin;
  for (int64_t i = done + threadIdx.x; i < end; i += kElementThreads) v[i] = step(v[i], T(g[i]));
}

// Launches `launch(groups)` for every kMaxGroups groups of kTensors views, of those that `takes`.
template <int kTensors, class F, class L>
int32_t forGroups(const aq_view* in, int32_t n_in, int64_t piece, F&& takes, L&& launch,
                  const char* op, aq_error* err) {
  Groups<kTensors> groups;
  const auto flush = [&]() -> int32_t {
    if (groups.size == 0) return AQ_OK;
    launch(groups);
    groups.size = 0;
    const cudaError_t status = cudaGetLastError();
    return status == cudaSuccess ? int32_t(AQ_OK) : failCuda(err, status, op);
  };
  for (int32_t i = 0; i < n_in; i += kTensors) {
    if (!takes(in + i)) continue;
    groups.add(in + i, piece);
    if (groups.size == kMaxGroups && flush() != AQ_OK) return err->code;
  }
  return flush();
}

template <class T, class S>
int32_t signSteps(aq_queue* queue, const aq_view* in, int32_t n_in, int32_t dtype,
                  const aq_sign_step_params& params, aq_error* err) {
  const StepControl control(in);
  return forGroups<2>(
      in + StepControl::kInputs, n_in - StepControl::kInputs, kPiece<T>,
      [dtype](const aq_view* group) { return group[1].dtype == dtype; },
      [&](const Groups<2>& groups) {
        signStepGroups<T, S><<<groups.blocks(), kElementThreads, 0, queue->stream>>>(
            groups, params.lr, T(params.limit), control);
      },
      "sign_step", err);
}

// ---------------------------------------------------------------- keep_away

template <class T>
struct KeepAway {
  T limit;
  __device__ void operator()(const T (&x)[1], T (&y)[1]) const {
    const T p = x[0];
    const bool isInside = p < limit && p > -limit && p != 0;
    y[0] = isInside ? (p > 0 ? limit : -limit) : p;
  }
};

}  // namespace

int32_t adam(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view*, int32_t,
             const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto settings = AdamSettings::of(*static_cast<const aq_adam_params*>(params));
  const StepControl control(in);
  return visitFloat(in[StepControl::kInputs].dtype, err, [&]<class T>() {
    return forGroups<4>(
        in + StepControl::kInputs, n_in - StepControl::kInputs, kPiece<T>,
        [](const aq_view*) { return true; },
        [&](const Groups<4>& groups) {
          adamGroups<T>
              <<<groups.blocks(), kElementThreads, 0, queue->stream>>>(groups, settings, control);
        },
        "adam", err);
  });
}

int32_t keep_away(aq_queue* queue, const aq_view* in, int32_t, const aq_view*, int32_t,
                  const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double limit = static_cast<const aq_keep_away_params*>(params)->limit;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "keep_away", numel(in[0]), streamsOf<T, 1, 1>(in, in),
                       KeepAway<T>{T(limit)}, err);
  });
}

// Groups of each type of gradient go together; which of them comes first changes nothing.
int32_t sign_step(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view*, int32_t,
                  const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_sign_step_params*>(params);
  if (in[StepControl::kInputs].dtype == AQ_F64)
    return signSteps<double, double>(queue, in, n_in, AQ_F64, p, err);
  if (signSteps<float, float>(queue, in, n_in, AQ_F32, p, err) != AQ_OK ||
      signSteps<float, __nv_bfloat16>(queue, in, n_in, AQ_BF16, p, err) != AQ_OK) {
    return err->code;
  }
  return signSteps<float, __half>(queue, in, n_in, AQ_F16, p, err);
}

}  // namespace aq::cuda
