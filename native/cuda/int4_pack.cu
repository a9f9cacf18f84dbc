// int4_pack: codes of at most 4 bits into the order of the matrix units; and back into numbers.
//
// Math      pack: a permutation (native/abi/params.h says which).  expand: w = (code - zero) scale.
// Layout    pack: a thread makes four bytes, 8 codes of two rows.  expand: a thread turns 16
//           columns of two rows into numbers.
// Cost      pack reads a byte and writes half of one per weight, once at load. expand reads half a
//           byte and writes one number: bandwidth-bound.
// Roofline  expand 8192 x 8192 to bf16: 168 MB -> 50 us at 3.35 TB/s (H100 SXM data sheet); in slabs
//           that stay in L2, as int4_matmul does it, less.
// Versions  v1 (this).
// Numerics  scales are rounded to f16, once. expand multiplies in f32 (f64 for f64) and rounds once.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/int4_order.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace int4 {

namespace {

template <class T>
__global__ __launch_bounds__(kPackThreads) void packGrid(const T* scale, const T* zero,
                                                         int64_t outputs, int64_t groups,
                                                         int64_t count, __half* toScale,
                                                         uint8_t* toZero) {
  const int64_t stride = int64_t(gridDim.x) * kPackThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x; i < count; i += stride) {
    const int slot = int(i % kTileRows);
    const int64_t group = i / kTileRows % groups;
    const int64_t row = i / kTileRows / groups * kTileRows + slot / 2 + 8 * (slot & 1);
    const bool inside = row < outputs;
    const float s = inside ? float(scale[row * groups + group]) : 0.0f;
    const float z = inside ? float(zero[row * groups + group]) : 0.0f;
    toScale[i] = __float2half_rn(s);
    toZero[i] = uint8_t(fminf(fmaxf(rintf(z), 0.0f), 15.0f));
  }
}

}  // namespace

int32_t expand(aq_queue* queue, const Weights& w, int64_t first, int64_t count, int32_t dtype,
               void* to, aq_error* err) {
  return expandTo<Format::kInt4>(queue, w, nullptr, first, count, dtype, to, err);
}

}  // namespace int4

int32_t int4_pack(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                  const void*, aq_error* err) {
  using namespace int4;
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int32_t code = packCodesTo(queue, in[0], out[0], err);
  if (code != AQ_OK) return code;
  const int64_t outputs = in[0].dim[0], groups = out[1].dim[1], slots = numel(out[1]);
  if (slots == 0) return AQ_OK;
  return visitFloat(in[1].dtype, err, [&]<class T>() -> int32_t {
    packGrid<T><<<elementBlocks(slots), kPackThreads, 0, queue->stream>>>(
        static_cast<const T*>(in[1].data), static_cast<const T*>(in[2].data), outputs, groups,
        slots, static_cast<__half*>(out[1].data), static_cast<uint8_t*>(out[2].data));
    LAUNCH_CHECK("int4_pack (grid)");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
