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
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace int4 {

namespace {

constexpr int kThreads = 256;

// Column within 64 of byte b of a row's 64.
__device__ int columnAt(int b) {
  return 16 * (b >> 2 & 3) + 2 * (b >> 4) + (b >> 1 & 1) + 8 * (b & 1);
}

__global__ __launch_bounds__(kThreads) void packCodes(const uint8_t* codes, int64_t outputs,
                                                      int64_t inputs, int64_t tiles, int64_t words,
                                                      uint32_t* to) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t w = int64_t(blockIdx.x) * kThreads + threadIdx.x; w < words; w += stride) {
    const int64_t tile = w / (kTileBytes / 4);
    const int byte = int(w % (kTileBytes / 4)) * 4;
    const int64_t row = tile / tiles * kTileRows + byte % 512 / 64;
    const int64_t column0 = tile % tiles * kTileColumns + byte / 512 * 64;
    uint32_t word = 0;
#pragma unroll
    for (int nibble = 0; nibble < 8; nibble++) {
      const int64_t r = row + 8 * (nibble & 1), c = column0 + columnAt(byte % 64 + nibble / 2);
      if (r < outputs && c < inputs)
        word |= min(uint32_t(codes[r * inputs + c]), 15u) << (4 * nibble);
    }
    to[w] = word;
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void packGrid(const T* scale, const T* zero, int64_t outputs,
                                                     int64_t groups, int64_t count, __half* toScale,
                                                     uint8_t* toZero) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
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

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Thread: 16 columns of rows g and g + 8 of a tile, whose codes are one word of each of four lanes.
template <class T>
__global__ __launch_bounds__(kThreads) void expandCodes(Weights w, int64_t first, int64_t count,
                                                        int64_t items, bool wide, T* to) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t perRow = int64_t(w.tiles) * 64, piece = item % perRow;
  const int64_t tileRow = first / kTileRows + item / perRow, tile = piece / 64;
  const int part = int(piece % 64), half = part / 32, g = part / 4 % 8, k = part % 4;
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(
      w.codes + (tileRow * w.tiles + tile) * kTileBytes + half * 512 + g * 64);
  uint32_t word[4];
#pragma unroll
  for (int t = 0; t < 4; t++) word[t] = words[4 * t + k];
  const int step = int(tile) * kTileSteps + half * 2 + k / 2;
  const int64_t group = min(w.firstGroup(step), w.groups - 1);
  const int64_t slot = (tileRow * w.groups + group) * kTileRows + 2 * g;
  const int64_t column = tile * kTileColumns + half * 64 + k * 16;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t row = tileRow * kTileRows + g + 8 * r - first;
    if (row >= count) break;
    const Sum<T> s = __half2float(__ushort_as_half(w.scale[slot + r]));
    const int z = w.zero[slot + r];
    Vec<T, 16> values;
#pragma unroll
    for (int t = 0; t < 4; t++) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        values.lane[2 * t + i / 2 + i % 2 * 8] =
            T(Sum<T>(int(word[t] >> (8 * i + 4 * r) & 15u) - z) * s);
    }
    T* const target = to + row * w.inputs + column;
#pragma unroll
    for (int e = 0; e < 16; e += 8) {
      if (wide) {
        if (column + e >= w.inputs) continue;
        constexpr int kPieces = sizeof(T) / 2;  // of 16 bytes, for eight values
        const auto* pieces = reinterpret_cast<const uint4*>(values.lane + e);
#pragma unroll
        for (int p = 0; p < kPieces; p++) reinterpret_cast<uint4*>(target + e)[p] = pieces[p];
      } else {
#pragma unroll
        for (int j = e; j < e + 8; j++)
          if (column + j < w.inputs) target[j] = values.lane[j];
      }
    }
  }
}

template <class T>
int32_t expandAs(aq_queue* queue, const Weights& w, int64_t first, int64_t count, void* to,
                 aq_error* err) {
  const int64_t tileRows = (count + kTileRows - 1) / kTileRows;
  const int64_t items = tileRows * w.tiles * 64;
  if (items == 0) return AQ_OK;
  const bool wide = w.inputs % 8 == 0 && isAligned16(to);
  expandCodes<T><<<unsigned((items + kThreads - 1) / kThreads), kThreads, 0, queue->stream>>>(
      w, first, count, items, wide, static_cast<T*>(to));
  LAUNCH_CHECK("int4_matmul (expand)");
  return AQ_OK;
}

}  // namespace

int32_t expand(aq_queue* queue, const Weights& w, int64_t first, int64_t count, int32_t dtype,
               void* to, aq_error* err) {
  switch (dtype) {
    case AQ_F64:
      return expandAs<double>(queue, w, first, count, to, err);
    case AQ_BF16:
      return expandAs<__nv_bfloat16>(queue, w, first, count, to, err);
    case AQ_F16:
      return expandAs<__half>(queue, w, first, count, to, err);
    default:
      return expandAs<float>(queue, w, first, count, to, err);
  }
}

}  // namespace int4

int32_t int4_pack(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                  const void*, aq_error* err) {
  using namespace int4;
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t outputs = in[0].dim[0], inputs = in[0].dim[1];
  const int64_t tiles = out[0].dim[1], groups = out[1].dim[1];
  const int64_t words = numel(out[0]) / 4, slots = numel(out[1]);
  if (words > 0) {
    packCodes<<<elementBlocks(words), kThreads, 0, queue->stream>>>(
        static_cast<const uint8_t*>(in[0].data), outputs, inputs, tiles, words,
        static_cast<uint32_t*>(out[0].data));
    LAUNCH_CHECK("int4_pack (codes)");
  }
  if (slots == 0) return AQ_OK;
  return visitFloat(in[1].dtype, err, [&]<class T>() -> int32_t {
    packGrid<T><<<elementBlocks(slots), kThreads, 0, queue->stream>>>(
        static_cast<const T*>(in[1].data), static_cast<const T*>(in[2].data), outputs, groups,
        slots, static_cast<__half*>(out[1].data), static_cast<uint8_t*>(out[2].data));
    LAUNCH_CHECK("int4_pack (grid)");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
