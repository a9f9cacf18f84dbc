// int4_maps.h: the operands of int4_matmul and fp4_matmul as bulk tensor copies see them (int4_ring.cuh).
#pragma once
#include <cuda.h>

#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

struct Maps {
  CUtensorMap x;       // columns in runs of 64, rows, runs; in the 128-byte swizzle
  CUtensorMap codes;   // bytes of a unit of a row tile, row tiles, units
  CUtensorMap scales;  // of floats: bytes of a row tile, row tiles
};

// What one copy brings: `rows` of x and `runs` of 64 columns; `rowTiles` of W and `units` of
// `unitBytes` each; of floats `scaleBytes` of scales of each row tile.
struct MapBoxes {
  int32_t rows, runs, unitBytes, rowTiles, units, scaleBytes;
};

int32_t encodeMaps(Maps* maps, const Activations& x, const Weights& w, const MapBoxes& boxes,
                   aq_error* err);

}  // namespace aq::cuda::int4
