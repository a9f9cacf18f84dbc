// attention_shape.cuh: what attention and its gradient share: the sizes of a call, the place of a
// thread block in it, the choice of kernels, and launches that need much shared memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/check.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Heads are widened to one of the widths the kernels are built for, and sequences to whole tiles of
// this many tokens, both with zeros: then no kernel checks a load.
inline constexpr int kTokenTile = 128;
inline constexpr int kWidestHead = 256;

inline constexpr double kLog2E = 1.4426950408889634074;

struct AttentionShape {
  int64_t batch;
  int32_t tokens, padded;  // padded: to whole tiles
  int32_t heads, kvHeads;
  int32_t size;   // D
  int32_t width;  // D widened: 32, 64, 128 or 256
  int32_t bits;
  double scale;

  __host__ __device__ int64_t queryHeads() const { return batch * heads; }
  __host__ __device__ int64_t keyHeads() const { return batch * kvHeads; }
  __host__ __device__ int32_t group() const { return heads / kvHeads; }
  bool isEmpty() const { return batch == 0 || tokens == 0 || size == 0; }
};

// Params: aq_attention_params or aq_attention_grad_params, which have the same fields.
template <class Params>
int32_t attentionShape(const aq_view& q, const Params& p, const char* what, AttentionShape& shape,
                       aq_error* err) {
  const int64_t tokens = q.dim[1], size = q.dim[2] / p.heads;
  if (size > kWidestHead) {
    return fail(err, AQ_UNSUPPORTED,
                "%s: heads of %lld channels; the CUDA kernels take up to %d. Use the CPU.", what,
                static_cast<long long>(size), kWidestHead);
  }
  const int64_t padded = (tokens + kTokenTile - 1) / kTokenTile * kTokenTile;
  if (q.dim[0] * p.heads * (padded / 16) > INT32_MAX) {
    return fail(err, AQ_SHAPE, "%s: %lld sequences of %lld tokens in %d heads are too many tiles.",
                what, static_cast<long long>(q.dim[0]), static_cast<long long>(tokens), p.heads);
  }
  int32_t width = 32;
  while (width < size) width *= 2;
  shape = {q.dim[0],      int32_t(tokens), int32_t(padded), p.heads, p.kv_heads,
           int32_t(size), width,           p.bits,          p.scale};
  return AQ_OK;
}

// The block of queries and the heads that a thread block works on: the last queries, which see the
// most keys, come first, and neighbouring blocks have neighbouring heads.
struct QueryPlace {
  int64_t b;
  int h;
  int64_t head, kvHead;  // of the packed tensors
  int row0;

  __device__ QueryPlace(const AttentionShape& shape, int blocks, int rows) {
    const unsigned heads = unsigned(shape.queryHeads());
    head = blockIdx.x % heads;
    row0 = (blocks - 1 - int(blockIdx.x / heads)) * rows;
    b = head / shape.heads;
    h = int(head - b * shape.heads);
    kvHead = b * shape.kvHeads + h / shape.group();
  }
};

// A packed head of 16-bit numbers: panels of up to 64 columns, each [padded tokens][columns], row
// by row in chunks of 16 bytes at the places that chunkOffset says: any whole number of eight rows
// of a panel is then a piece of a tile as the tensor cores read it.
template <int kD>
inline constexpr int kPanelColumns = kD < 64 ? kD : 64;
template <int kD>
inline constexpr int kRowBytes = kPanelColumns<kD> * 2;

// Byte of a row's chunk in its panel.
template <int kD>
__device__ inline uint32_t chunkOffset(int row, int chunk) {
  const int turn = kD >= 64 ? row & 7 : (row >> 1) & 3;
  return uint32_t(row * kRowBytes<kD> + ((chunk ^ turn) << 4));
}

// Calls f.operator()<kWidth>() for the width of the shape's heads.
template <class F>
int32_t visitWidth(int32_t width, F&& f) {
  if (width == 32) return f.template operator()<32>();
  if (width == 64) return f.template operator()<64>();
  if (width == 128) return f.template operator()<128>();
  return f.template operator()<256>();
}

// Calls f.operator()<E>() for the element type of the queue's tensor-core products.
template <class F>
int32_t visitPrecision(Precision precision, F&& f) {
  if (precision == Precision::kBf16) return f.template operator()<__nv_bfloat16>();
  return f.template operator()<__half>();
}

// Whether products go to the tensor cores. They take the maximum of logits before scaling them,
// which a scale of zero or below would turn around; nobody has such a scale, so it may be slow.
inline bool usesTensorCores(const aq_queue* queue, int32_t dtype, const AttentionShape& shape) {
  return dtype == AQ_F32 && queue->precision != Precision::kF32 && shape.scale > 0;
}

// Whether the device runs the code for sm_90a, the only one with products of warpgroups.
inline bool hasWarpgroups(const aq_queue* queue) { return queue->computeCapability == 90; }

// Launches a kernel with `shared` bytes of dynamic shared memory.
template <class... Params, class... Args>
int32_t launchTiles(aq_queue* queue, void (*kernel)(Params...), const char* what, int64_t blocks,
                    int threads, size_t shared, aq_error* err, const Args&... args) {
  constexpr size_t kPlain = 48 << 10;  // what every launch may have without asking
  if (shared > kPlain) {
    int most = 0;
    CUDA_CHECK(
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device));
    if (shared > size_t(most)) {
      return fail(err, AQ_UNSUPPORTED,
                  "%s: a tile needs %zu bytes of shared memory and device %d has %d a block; use "
                  "narrower heads, f32 or the CPU.",
                  what, shared, queue->device, most);
    }
    CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  }
  kernel<<<unsigned(blocks), unsigned(threads), shared, queue->stream>>>(args...);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return failCuda(err, status, what);
  return AQ_OK;
}

}  // namespace aq::cuda
