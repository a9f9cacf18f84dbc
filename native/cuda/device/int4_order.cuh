// int4_order.cuh: codes into the packed order, and out of it into numbers, for int4_pack.cu and
// fp4_pack.cu.
#pragma once
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/launch.h"

namespace aq::cuda::int4 {

inline constexpr int kPackThreads = 256;

// Column within 64 of byte b of a row's 64.
__device__ inline int columnAt(int b) {
  return 16 * (b >> 2 & 3) + 2 * (b >> 4) + (b >> 1 & 1) + 8 * (b & 1);
}

static __global__ __launch_bounds__(kPackThreads) void packCodes(const uint8_t* codes,
                                                                 int64_t outputs, int64_t inputs,
                                                                 int64_t tiles, int64_t words,
                                                                 uint32_t* to) {
  const int64_t stride = int64_t(gridDim.x) * kPackThreads;
  for (int64_t w = int64_t(blockIdx.x) * kPackThreads + threadIdx.x; w < words; w += stride) {
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

// The first stage of int4_pack and fp4_pack: codes [outputs, inputs] into the packed tensor.
inline int32_t packCodesTo(aq_queue* queue, const aq_view& codes, const aq_view& packed,
                           aq_error* err) {
  const int64_t words = numel(packed) / 4;
  if (words == 0) return AQ_OK;
  packCodes<<<elementBlocks(words), kPackThreads, 0, queue->stream>>>(
      static_cast<const uint8_t*>(codes.data), codes.dim[0], codes.dim[1], packed.dim[1], words,
      static_cast<uint32_t*>(packed.data));
  LAUNCH_CHECK("the packing of codes");
  return AQ_OK;
}

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Thread: 16 columns of rows g and g + 8 of a tile, whose codes are one word of each of four lanes.
// e4m3fn of a byte without its sign, and the power of two of an e8m0.
__device__ inline float scaleOfByte(Format format, uint32_t byte) {
  if (format == Format::kMxFp4)
    return byte == 0xff ? NAN : byte ? __uint_as_float(byte << 23) : 0x1p-127f;
  if (byte == 0x7f) return NAN;
  return byte < 8 ? float(byte) * 0x1p-9f : __uint_as_float((byte << 20) + (120u << 23));
}

// Numbers of one row's group: (code - zero) scale, or e2m1 times a scale.
template <Format kFormat, class T>
struct Row {
  Sum<T> scale;
  int zero;

  __device__ Row(const Weights& w, int64_t slot, const void* factor) {
    if constexpr (kFormat == Format::kInt4) {
      scale = __half2float(__ushort_as_half(w.scale[slot]));
      zero = w.zero[slot];
    } else {
      scale = scaleOfByte(kFormat, w.bytes[slot]);
      if (factor) scale *= *static_cast<const Sum<T>*>(factor);
    }
  }
  __device__ T operator()(uint32_t code) const {
    if constexpr (kFormat == Format::kInt4) {
      return T(Sum<T>(int(code) - zero) * scale);
    } else {
      return T(Sum<T>(e2m1Value(code)) * scale);
    }
  }
};

template <Format kFormat, class T>
__global__ __launch_bounds__(kPackThreads) void expandCodes(Weights w, const void* factor,
                                                            int64_t first, int64_t count,
                                                            int64_t items, bool wide, T* to) {
  const int64_t item = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
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
  const int ofStep = kFormat == Format::kNvFp4 ? 2 * step + k % 2 : step;
  const int64_t group = min(kFormat == Format::kInt4 ? w.firstGroup(step) : ofStep, w.groups - 1);
  const int64_t slot = (tileRow * w.groups + group) * kTileRows + 2 * g;
  const int64_t column = tile * kTileColumns + half * 64 + k * 16;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t row = tileRow * kTileRows + g + 8 * r - first;
    if (row >= count) break;
    const Row<kFormat, T> number(w, slot + r, factor);
    Vec<T, 16> values;
#pragma unroll
    for (int t = 0; t < 4; t++) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        values.lane[2 * t + i / 2 + i % 2 * 8] = number(word[t] >> (8 * i + 4 * r) & 15u);
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

template <Format kFormat, class T>
int32_t expandAs(aq_queue* queue, const Weights& w, const void* factor, int64_t first,
                 int64_t count, void* to, aq_error* err) {
  const int64_t tileRows = (count + kTileRows - 1) / kTileRows;
  const int64_t items = tileRows * w.tiles * 64;
  if (items == 0) return AQ_OK;
  const bool wide = w.inputs % 8 == 0 && isAligned16(to);
  expandCodes<kFormat, T>
      <<<unsigned((items + kPackThreads - 1) / kPackThreads), kPackThreads, 0, queue->stream>>>(
          w, factor, first, count, items, wide, static_cast<T*>(to));
  LAUNCH_CHECK("int4_matmul (expand)");
  return AQ_OK;
}

// `factor` of the floats, f64 for f64 and else f32, or null.
template <Format kFormat>
int32_t expandTo(aq_queue* queue, const Weights& w, const void* factor, int64_t first,
                 int64_t count, int32_t dtype, void* to, aq_error* err) {
  switch (dtype) {
    case AQ_F64:
      return expandAs<kFormat, double>(queue, w, factor, first, count, to, err);
    case AQ_BF16:
      return expandAs<kFormat, __nv_bfloat16>(queue, w, factor, first, count, to, err);
    case AQ_F16:
      return expandAs<kFormat, __half>(queue, w, factor, first, count, to, err);
    default:
      return expandAs<kFormat, float>(queue, w, factor, first, count, to, err);
  }
}

}  // namespace aq::cuda::int4
