// fp4_pack: e2m1 codes into the order of the matrix units, and their scales into bytes; and back into
// numbers.
//
// Math      pack: a permutation (native/abi/params.h says which), and scales as e4m3fn or e8m0.
//           expand: w = e2m1(code) scale factor.
// Layout    int4_pack.cu's.
// Cost      pack reads a byte and writes half of one per weight, once at load. expand reads half a
//           byte and writes one number: bandwidth-bound.
// Versions  v1 (this).
// Numerics  scales that their bytes hold are kept; others are rounded. expand multiplies in f32 (f64 for
//           f64), which is exact without a factor, and rounds once.
#include "native/cuda/check.h"
#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/int4_order.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace int4 {

namespace {

__device__ uint8_t byteOf(Format format, float s) {
  if (format == Format::kMxFp4) return isnan(s) ? 0xff : uint8_t(__float_as_uint(s) >> 23);
  if (isnan(s)) return 0x7f;
  s = fminf(fmaxf(s, 0.0f), kE4m3Most<float>);
  if (s < 0x1p-6f) return uint8_t(rintf(s * 0x1p9f));
  return uint8_t((__float_as_uint(roundE4m3(s)) >> 20) - (120u << 3));
}

template <class T>
__global__ __launch_bounds__(kPackThreads) void packScales(const T* scale, Format format,
                                                           int64_t outputs, int64_t groups,
                                                           int64_t count, uint8_t* to) {
  const int64_t stride = int64_t(gridDim.x) * kPackThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x; i < count; i += stride) {
    const int slot = int(i % kTileRows);
    const int64_t group = i / kTileRows % groups;
    const int64_t row = i / kTileRows / groups * kTileRows + slot / 2 + 8 * (slot & 1);
    to[i] = row < outputs ? byteOf(format, float(scale[row * groups + group])) : 0;
  }
}

}  // namespace

int32_t expandFloats(aq_queue* queue, const Weights& w, const void* factor, int64_t first,
                     int64_t count, int32_t dtype, void* to, aq_error* err) {
  if (w.format == Format::kMxFp4)
    return expandTo<Format::kMxFp4>(queue, w, factor, first, count, dtype, to, err);
  return expandTo<Format::kNvFp4>(queue, w, factor, first, count, dtype, to, err);
}

}  // namespace int4

int32_t fp4_pack(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void* params, aq_error* err) {
  using namespace int4;
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_fp4_pack_params*>(params);
  const Format format = p.format == kMxFp4 ? Format::kMxFp4 : Format::kNvFp4;
  const int32_t code = packCodesTo(queue, in[0], out[0], err);
  if (code != AQ_OK) return code;
  const int64_t outputs = in[0].dim[0], groups = out[1].dim[1], slots = numel(out[1]);
  if (slots == 0) return AQ_OK;
  return visitFloat(in[1].dtype, err, [&]<class T>() -> int32_t {
    packScales<T><<<elementBlocks(slots), kPackThreads, 0, queue->stream>>>(
        static_cast<const T*>(in[1].data), format, outputs, groups, slots,
        static_cast<uint8_t*>(out[1].data));
    LAUNCH_CHECK("fp4_pack (scales)");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
