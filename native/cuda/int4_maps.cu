// encodeMaps: the three-dimensional views that int4_matmul and fp4_matmul copy from.
#include "native/cuda/int4_maps.h"

#include "native/cuda/tensor_map.h"

namespace aq::cuda::int4 {

int32_t encodeMaps(Maps* maps, const Activations& x, const Weights& w, const MapBoxes& boxes,
                   aq_error* err) {
  constexpr int64_t kRun = 64;  // columns
  const MappedView xView = {CU_TENSOR_MAP_DATA_TYPE_UINT16,
                            3,
                            x.data,
                            {cuuint64_t(kRun), cuuint64_t(x.rows), cuuint64_t(x.ld / kRun)},
                            {cuuint64_t(x.ld) * 2, cuuint64_t(kRun) * 2},
                            {cuuint32_t(kRun), cuuint32_t(boxes.rows), cuuint32_t(boxes.runs)},
                            CU_TENSOR_MAP_SWIZZLE_128B};
  const int64_t rowBytes = int64_t(w.tiles) * kTileBytes;
  const MappedView codesView = {
      CU_TENSOR_MAP_DATA_TYPE_INT32,
      3,
      w.codes,
      {cuuint64_t(boxes.unitBytes) / 4, cuuint64_t(w.tileRows),
       cuuint64_t(rowBytes / boxes.unitBytes)},
      {cuuint64_t(rowBytes), cuuint64_t(boxes.unitBytes)},
      {cuuint32_t(boxes.unitBytes) / 4, cuuint32_t(boxes.rowTiles), cuuint32_t(boxes.units)},
      CU_TENSOR_MAP_SWIZZLE_NONE};
  int32_t code = encodeMap(&maps->x, xView, err);
  if (code == AQ_OK) code = encodeMap(&maps->codes, codesView, err);
  if (code != AQ_OK || w.format == Format::kInt4) return code;
  const int64_t groupBytes = int64_t(w.groups) * kTileRows;
  const MappedView scalesView = {
      CU_TENSOR_MAP_DATA_TYPE_INT32,
      3,
      w.bytes,
      {cuuint64_t(groupBytes) / 4, cuuint64_t(w.tileRows), 1},
      {cuuint64_t(groupBytes), cuuint64_t(groupBytes) * cuuint64_t(w.tileRows)},
      {cuuint32_t(boxes.scaleBytes) / 4, cuuint32_t(boxes.rowTiles), 1},
      CU_TENSOR_MAP_SWIZZLE_NONE};
  return encodeMap(&maps->scales, scalesView, err);
}

}  // namespace aq::cuda::int4
