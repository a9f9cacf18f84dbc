// attention_grad, attention_operand_grad: the gradient of causal softmax attention with respect to q, k and
// v as they were used, on their grids; and from what a quantizer of whole rows behind it gave.
//
// Math      device/attention_grad_args.cuh.
// Layout    packHeads lays q, k, v and go out by head and sums go o; q, k and v only where the forward
//           pass has not kept them so. Behind a quantizer attention_go.cuh makes go (bf16; other types
//           and heads: fake_quant_grad in front). Then one kernel goes over blocks of keys (gk, gv: the
//           queries of the group's heads pass by in a fixed order) and one over blocks of queries (gq).
//           Nothing is T x T, and nothing is added atomically.
//           Three sets of kernels: attention_grad_hopper.cuh (wgmma; heads of 33 to 128 channels),
//           attention_grad_mma.cuh (mma.sync) and attention_grad_simt.cuh (f32 and f64).
// Cost      7 T^2 D H flop (half the square; p and dp are built twice, which spares 2 T^2 H numbers
//           in memory or atomics): compute-bound from T of about 500 on.
// Roofline  T 2048, H 32, D 128: 120 GFLOP -> 122 us at 989 TFLOP/s, and 235 MB to pack -> 70 us at
//           3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB HBM3, driver 580, bf16: 326
//           us (packing 80, keys 142, queries 105), where PyTorch's attention takes 274 us from
//           bf16 tensors laid out by head; with mma.sync 524 us; in f32 5.6 ms.
//           From Node.js, the quantizer behind o included: 375 us op by op, 345 in this op, 298 with q, k
//           and v kept.
// Versions  v1 mma.sync; v2 with wgmma for Hopper; v3 products kept under way across tiles; v4 q, k and v
//           as the forward pass packed them, and the quantizer behind o (this).
// Numerics  sums and exponentials in f32 (f64 for f64 tensors); on the tensor cores q, k, v, go, p
//           and ds are rounded to bf16 or f16, where f16's go is first scaled by a power of two.
//           Heads above 128 channels run in f32.
#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/device/attention_go.cuh"
#include "native/cuda/device/attention_grad_hopper.cuh"
#include "native/cuda/device/attention_grad_mma.cuh"
#include "native/cuda/device/attention_grad_simt.cuh"
#include "native/cuda/device/attention_pack.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// Query heads that share a kv head are worked on in parts where there would be few blocks, and the
// parts are added up afterwards, in order. The shape alone decides on their number.
int32_t partsOf(const AttentionShape& shape) {
  constexpr int64_t kEnoughBlocks = 512, kKeys = 128;
  const int64_t blocks = shape.keyHeads() * ((shape.tokens + kKeys - 1) / kKeys);
  int32_t parts = 1;
  while (parts < shape.group() && (shape.group() % parts != 0 || blocks * parts < kEnoughBlocks))
    parts++;
  return parts;
}

template <class T>
__global__ __launch_bounds__(kElementThreads) void addUpParts(const T* __restrict__ gkParts,
                                                              const T* __restrict__ gvParts,
                                                              int parts, int64_t n,
                                                              T* __restrict__ gk,
                                                              T* __restrict__ gv) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; i < n; i += stride) {
    T k = gkParts[i], v = gvParts[i];
    for (int part = 1; part < parts; part++) {
      k += gkParts[part * n + i];
      v += gvParts[part * n + i];
    }
    gk[i] = k;
    gv[i] = v;
  }
}

int32_t blocksOf(const AttentionShape& shape, int rows) { return (shape.tokens + rows - 1) / rows; }

template <class T, class E, int kD>
int32_t launch(aq_queue* queue, Backward<T, E>& x, aq_error* err) {
  constexpr const char *kKeysName = "attention_grad (keys)", *kQueriesName = "attention_grad";
  const AttentionShape& shape = x.shape;
  if constexpr (std::is_same_v<T, E>) {
    x.blocks = blocksOf(shape, GradTiles<T, kD>::kRows);
    if (int32_t code = launchTiles(queue, gradKeysSimt<T, kD>, kKeysName,
                                   shape.keyHeads() * x.parts * x.blocks, kSimtThreads,
                                   gradShared<T, kD>(2), err, x)) {
      return code;
    }
    return launchTiles(queue, gradQueriesSimt<T, kD>, kQueriesName, shape.queryHeads() * x.blocks,
                       kSimtThreads, gradShared<T, kD>(1), err, x);
  } else {
    if constexpr (kD == 64 || kD == 128) {
      using Tiles = GradHopperTiles<kD>;
      if (hasWarpgroups(queue)) {
        x.blocks = blocksOf(shape, Tiles::kRows);
        if (int32_t code = launchTiles(queue, gradKeysHopper<E, kD>, kKeysName,
                                       shape.keyHeads() * x.parts * x.blocks, Tiles::kThreads,
                                       Tiles::kShared, err, x)) {
          return code;
        }
        return launchTiles(queue, gradQueriesHopper<E, kD>, kQueriesName,
                           shape.queryHeads() * x.blocks, Tiles::kThreads, Tiles::kShared, err, x);
      }
    }
    x.blocks = blocksOf(shape, KeyTiles<kD>::kKeys);
    if (int32_t code =
            launchTiles(queue, gradKeysMma<E, kD>, kKeysName, shape.keyHeads() * x.parts * x.blocks,
                        KeyTiles<kD>::kThreads, KeyTiles<kD>::kShared, err, x)) {
      return code;
    }
    x.blocks = blocksOf(shape, QueryTiles<kD>::kRows);
    return launchTiles(queue, gradQueriesMma<E, kD>, kQueriesName, shape.queryHeads() * x.blocks,
                       QueryTiles<kD>::kThreads, QueryTiles<kD>::kShared, err, x);
  }
}

// What is behind q, k, v and their grids. codes: null, or the quantizer behind o, which go is still to
// go through.
struct Behind {
  const aq_view &o, &lse, &go, &kept;
  const RowQuantizer* codes;
};

template <class T, class E>
int32_t run(aq_queue* queue, const aq_view* in, const Behind& behind, const aq_view* out,
            const AttentionShape& shape, aq_error* err) {
  constexpr bool kIsScaled = std::is_same_v<E, __half>;
  const auto& [o, lse, go, kept, codes] = behind;
  const uint64_t qBytes = scratchBytes(packedHeadBytes<E>(shape, shape.queryHeads()));
  const uint64_t kBytes = scratchBytes(packedHeadBytes<E>(shape, shape.keyHeads()));
  const uint64_t sumBytes = scratchBytes(uint64_t(shape.queryHeads() * shape.padded) * sizeof(T));
  const int32_t parts = partsOf(shape);
  const int64_t kNumel = numel(out[1]);
  const uint64_t partBytes = parts > 1 ? scratchBytes(uint64_t(parts * kNumel) * sizeof(T)) : 0;
  // q, k and v as the forward pass packed them, or packed here.
  const bool isPacked = sizeof(E) == 2 && kept.data && isAligned16(kept.data);
  const uint64_t ownBytes = isPacked ? 0 : qBytes + 2 * kBytes;
  const uint64_t packedBytes = ownBytes + qBytes + 2 * sumBytes + scratchBytes(sizeof(uint32_t));
  Scratch scratch(queue);
  const uint64_t bytes = packedBytes + 2 * partBytes;
  if (int32_t code = scratch.allocate(bytes, "attention_grad", err)) return code;
  E* const q = isPacked ? static_cast<E*>(kept.data) : scratch.at<E>();
  E* const k = q + qBytes / sizeof(E);
  E* const v = k + kBytes / sizeof(E);
  E* const g = scratch.at<E>(ownBytes);
  T* const lse2 = scratch.at<T>(ownBytes + qBytes);
  T* const delta = scratch.at<T>(ownBytes + qBytes + sumBytes);
  uint32_t* const peak =
      kIsScaled ? scratch.at<uint32_t>(ownBytes + qBytes + 2 * sumBytes) : nullptr;
  if constexpr (kIsScaled) {
    CUDA_CHECK(cudaMemsetAsync(peak, 0, sizeof(uint32_t), queue->stream));
    const int64_t n = numel(go);
    const float* const x = static_cast<const float*>(go.data);
    if (n % 4 == 0 && isAligned16(x)) {
      findPeak<4><<<elementBlocks(n / 16), kElementThreads, 0, queue->stream>>>(x, n / 4, peak);
    } else {
      findPeak<1><<<elementBlocks(n / 4), kElementThreads, 0, queue->stream>>>(x, n, peak);
    }
    LAUNCH_CHECK("attention_grad (peak)");
  }

  Packer<T, E> packer(shape);
  if (!isPacked) {
    packer.add(in[0], in + 3, shape.heads, q);
    packer.add(in[1], in + 5, shape.kvHeads, k);
    packer.add(in[2], in + 7, shape.kvHeads, v);
  }
  if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    if (codes) {
      const auto data = [](const aq_view& v) { return static_cast<const float*>(v.data); };
      const GoRows rows = {data(o), data(go), g, data(lse), lse2, delta, shape, *codes};
      if (int32_t code = packGoRows(queue, rows, err)) return code;
    }
  }
  if (!codes) {
    packer.add(go, nullptr, shape.heads, g, static_cast<const T*>(o.data));
    packer.setSums(static_cast<const T*>(lse.data), lse2, delta, peak);
  }
  if (int32_t code = packer.run(queue, "attention_grad (packing)", err, codes != nullptr))
    return code;

  const bool isPaired = shape.size % 2 == 0 && isAligned16(out[0].data) &&
                        isAligned16(out[1].data) && isAligned16(out[2].data);
  Backward<T, E> x = {
      q,
      k,
      v,
      g,
      lse2,
      delta,
      static_cast<T*>(out[0].data),
      parts > 1 ? scratch.at<T>(packedBytes) : static_cast<T*>(out[1].data),
      parts > 1 ? scratch.at<T>(packedBytes + partBytes) : static_cast<T*>(out[2].data),
      peak,
      shape,
      T(shape.scale * kLog2E),
      isPaired,
      0,
      parts};
  const int32_t code = visitWidth(shape.width, [&]<int kD>() -> int32_t {
    if constexpr (std::is_same_v<T, E> || kD <= kWidestMmaGradHead) {
      return launch<T, E, kD>(queue, x, err);
    } else {
      return fail(err, AQ_INTERNAL, "attention_grad: no tensor-core kernel for %d channels.", kD);
    }
  });
  if (code != AQ_OK || parts == 1) return code;
  addUpParts<T><<<elementBlocks(kNumel), kElementThreads, 0, queue->stream>>>(
      x.gk, x.gv, parts, kNumel, static_cast<T*>(out[1].data), static_cast<T*>(out[2].data));
  LAUNCH_CHECK("attention_grad (parts)");
  return AQ_OK;
}

// Whether the products of this gradient are those of the tensor cores.
bool isOnTensorCores(const aq_queue* queue, int32_t dtype, const AttentionShape& shape) {
  return usesTensorCores(queue, dtype, shape) && shape.width <= kWidestMmaGradHead;
}

int32_t runInPrecision(aq_queue* queue, const aq_view* in, const Behind& behind, const aq_view* out,
                       const AttentionShape& shape, aq_error* err) {
  if (isOnTensorCores(queue, in[0].dtype, shape)) {
    return visitPrecision(queue->precision, [&]<class E>() {
      return run<float, E>(queue, in, behind, out, shape, err);
    });
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return run<T, T>(queue, in, behind, out, shape, err); });
}

// With go made by an op of its own.
int32_t throughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const AttentionShape& shape, const aq_attention_operand_grad_params& o,
                       aq_error* err) {
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    Scratch scratch(queue);
    const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
    if (int32_t code = scratch.allocate(bytes, "attention_operand_grad", err)) return code;
    const aq_view go = viewOf(in[0], scratch.at<T>());
    if (int32_t code = quantizeRowsGrad(queue, in[10], in[9], in + 12, in[14], o.row_bits, o.floor,
                                        go, out[3], err))
      return code;
    return runInPrecision(queue, in, {in[10], in[11], go, in[15], nullptr}, out, shape, err);
  });
}

}  // namespace

int32_t attention_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                       const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_attention_grad_params*>(params);
  AttentionShape shape = {};
  if (int32_t code = attentionShape(in[0], p, "attention_grad", shape, err)) return code;
  if (shape.isEmpty()) return AQ_OK;
  return runInPrecision(queue, in, {in[9], in[10], in[11], in[12], nullptr}, out, shape, err);
}

int32_t attention_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                               int32_t, const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_attention_operand_grad_params*>(params);
  AttentionShape shape = {};
  if (int32_t code = attentionShape(in[0], o, "attention_operand_grad", shape, err)) return code;
  const bool isOnePass = !shape.isEmpty() && isOnTensorCores(queue, in[0].dtype, shape) &&
                         queue->precision == Precision::kBf16 && canPackGo(shape, in[10], in[14]);
  if (!isOnePass) return throughScratch(queue, in, out, shape, o, err);
  const int64_t rows = shape.batch * shape.tokens;
  Scratch scratch(queue);
  if (in[9].data) {
    const uint64_t bytes = logitSumBytes(in[9], rows);
    if (int32_t code = scratch.allocate(bytes, "attention_operand_grad", err)) return code;
  }
  const RowQuantizer codes = rowQuantizer(queue, in[9], in + 12, {o.floor, o.row_bits}, rows,
                                          scratch.at<double>(), out[3]);
  return runInPrecision(queue, in, {in[10], in[11], in[14], in[15], &codes}, out, shape, err);
}

}  // namespace aq::cuda
