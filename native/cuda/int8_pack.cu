// int8_pack: codes of at most 8 bits into the order of the product; and back into numbers.
//
// Math      pack: a permutation (native/abi/params.h says which).  expand: w = (code - zero) scale.
// Layout    pack: a thread makes four bytes of a row.  expand: a thread turns four bytes into numbers.
// Cost      pack reads and writes a byte for each weight, once at load. expand reads a byte and writes
//           one number: bandwidth-bound.
// Roofline  expand 8192 x 8192 to bf16: 201 MB -> 60 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  scales are rounded to f16, once. expand multiplies in f32 (f64 for f64) and rounds once.
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/int8.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace int8 {

namespace {

constexpr int kThreads = kElementThreads;

__global__ __launch_bounds__(kThreads) void packCodes(const uint8_t* codes, int64_t outputs,
                                                      int64_t inputs, int64_t tiles, int64_t words,
                                                      uchar4* packed) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < words; i += stride) {
    const int64_t tile = i / (kTileBytes / 4), inTile = i % (kTileBytes / 4) * 4;
    const int64_t row = tile / tiles * kTileRows + inTile / kTileColumns;
    const int64_t column = tile % tiles * kTileColumns + inTile % kTileColumns;
    const auto code = [&](int64_t c) -> uint8_t {
      return row < outputs && c < inputs ? codes[row * inputs + c] : 0;
    };
    packed[i] = make_uchar4(code(column), code(column + 1), code(column + 2), code(column + 3));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void packGrid(const T* scale, const T* zero, int64_t outputs,
                                                     int64_t groups, int64_t count, __half* toScale,
                                                     uint8_t* toZero) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t group = i / kTileRows % groups;
    const int64_t row = i / kTileRows / groups * kTileRows + i % kTileRows;
    const bool inside = row < outputs;
    const float s = inside ? float(scale[row * groups + group]) : 0.0f;
    const float z = inside ? float(zero[row * groups + group]) : 0.0f;
    toScale[i] = __float2half_rn(s);
    toZero[i] = uint8_t(fminf(fmaxf(rintf(z), 0.0f), 255.0f));
  }
}

// T computes, and E is what is stored.
template <class T, class E>
__global__ __launch_bounds__(kThreads) void expandRows(Weights w, int64_t first, int64_t words,
                                                       E* to) {
  const int64_t stride = int64_t(gridDim.x) * kThreads,
                perRow = int64_t(w.tiles) * kTileColumns / 4;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < words; i += stride) {
    const int64_t row = first + i / perRow, column = i % perRow * 4;
    if (column >= w.inputs) continue;
    const int64_t tileRow = row / kTileRows, r = row % kTileRows;
    const int64_t at = (tileRow * w.tiles + column / kTileColumns) * kTileBytes + r * kTileColumns +
                       column % kTileColumns;
    const uchar4 code = *reinterpret_cast<const uchar4*>(w.codes + at);
    const int64_t slot = (tileRow * w.groups + column / w.group) * kTileRows + r;
    const T s = T(__half2float(__ushort_as_half(w.scale[slot]))), z = T(w.zero[slot]);
    const uint8_t codes[4] = {code.x, code.y, code.z, code.w};
    E* const y = to + (row - first) * w.inputs + column;
    for (int j = 0; j < 4; j++)
      if (column + j < w.inputs) y[j] = E((T(codes[j]) - z) * s);
  }
}

template <class T, class E>
int32_t expandAs(aq_queue* queue, const Weights& w, int64_t first, int64_t count, void* to,
                 aq_error* err) {
  const int64_t words = count * w.tiles * kTileColumns / 4;
  if (words == 0) return AQ_OK;
  expandRows<T, E>
      <<<elementBlocks(words), kThreads, 0, queue->stream>>>(w, first, words, static_cast<E*>(to));
  LAUNCH_CHECK("int8_matmul (weights)");
  return AQ_OK;
}

}  // namespace

int32_t expand(aq_queue* queue, const Weights& w, int64_t first, int64_t count, int32_t dtype,
               void* to, aq_error* err) {
  switch (dtype) {
    case AQ_F64:
      return expandAs<double, double>(queue, w, first, count, to, err);
    case AQ_BF16:
      return expandAs<float, __nv_bfloat16>(queue, w, first, count, to, err);
    case AQ_F16:
      return expandAs<float, __half>(queue, w, first, count, to, err);
    default:
      return expandAs<float, float>(queue, w, first, count, to, err);
  }
}

}  // namespace int8

int32_t int8_pack(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                  const void*, aq_error* err) {
  using namespace int8;
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t outputs = in[0].dim[0], inputs = in[0].dim[1];
  const int64_t tiles = out[0].dim[1], groups = out[1].dim[1];
  const int64_t words = numel(out[0]) / 4, slots = numel(out[1]);
  if (words > 0) {
    packCodes<<<elementBlocks(words), kThreads, 0, queue->stream>>>(
        static_cast<const uint8_t*>(in[0].data), outputs, inputs, tiles, words,
        static_cast<uchar4*>(out[0].data));
    LAUNCH_CHECK("int8_pack (codes)");
  }
  if (slots == 0) return AQ_OK;
  return visitFloat(in[1].dtype, err, [&]<class T>() -> int32_t {
    packGrid<T><<<elementBlocks(slots), kThreads, 0, queue->stream>>>(
        static_cast<const T*>(in[1].data), static_cast<const T*>(in[2].data), outputs, groups,
        slots, static_cast<__half*>(out[1].data), static_cast<uint8_t*>(out[2].data));
    LAUNCH_CHECK("int8_pack (grid)");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
