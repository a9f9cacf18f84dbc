// encodeMaps: the driver's encoder of tensor maps, asked for by name so that nothing is linked, for the
// three-dimensional views that int4_matmul copies from.
#include "native/cuda/int4_maps.h"

#include "native/cuda/check.h"

namespace aq::cuda::int4 {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    constexpr unsigned kFirstVersion = 12000;
    const cudaError_t status = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &found, kFirstVersion, cudaEnableDefault, &result);
    (void)cudaGetLastError();
    return status == cudaSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  return encode;
}

struct View {
  CUtensorMapDataType type;
  const void* data;
  cuuint64_t sizes[3], strides[2];  // strides in bytes, of the second and third dimension
  cuuint32_t box[3];
  CUtensorMapSwizzle swizzle;
};

int32_t encode(CUtensorMap* map, const View& view, aq_error* err) {
  if (!encoder())
    return fail(err, AQ_CUDA,
                "int4_matmul: the driver has no cuTensorMapEncodeTiled; install 525 or later.");
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result =
      encoder()(map, view.type, 3, const_cast<void*>(view.data), view.sizes, view.strides, view.box,
                steps, CU_TENSOR_MAP_INTERLEAVE_NONE, view.swizzle,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return AQ_OK;
  return fail(err, AQ_CUDA,
              "int4_matmul: the driver refused a tensor map of %llu x %llu x %llu (%d).",
              static_cast<unsigned long long>(view.sizes[0]),
              static_cast<unsigned long long>(view.sizes[1]),
              static_cast<unsigned long long>(view.sizes[2]), int(result));
}

}  // namespace

int32_t encodeMaps(Maps* maps, const Activations& x, const Weights& w, const MapBoxes& boxes,
                   aq_error* err) {
  constexpr int64_t kRun = 64;  // columns
  const View xView = {CU_TENSOR_MAP_DATA_TYPE_UINT16,
                      x.data,
                      {cuuint64_t(kRun), cuuint64_t(x.rows), cuuint64_t(x.ld / kRun)},
                      {cuuint64_t(x.ld) * 2, cuuint64_t(kRun) * 2},
                      {cuuint32_t(kRun), cuuint32_t(boxes.rows), cuuint32_t(boxes.runs)},
                      CU_TENSOR_MAP_SWIZZLE_128B};
  const int64_t rowBytes = int64_t(w.tiles) * kTileBytes;
  const View codesView = {
      CU_TENSOR_MAP_DATA_TYPE_INT32,
      w.codes,
      {cuuint64_t(boxes.unitBytes) / 4, cuuint64_t(w.tileRows),
       cuuint64_t(rowBytes / boxes.unitBytes)},
      {cuuint64_t(rowBytes), cuuint64_t(boxes.unitBytes)},
      {cuuint32_t(boxes.unitBytes) / 4, cuuint32_t(boxes.rowTiles), cuuint32_t(boxes.units)},
      CU_TENSOR_MAP_SWIZZLE_NONE};
  int32_t code = encode(&maps->x, xView, err);
  if (code == AQ_OK) code = encode(&maps->codes, codesView, err);
  if (code != AQ_OK || w.format == Format::kInt4) return code;
  const int64_t groupBytes = int64_t(w.groups) * kTileRows;
  const View scalesView = {
      CU_TENSOR_MAP_DATA_TYPE_INT32,
      w.bytes,
      {cuuint64_t(groupBytes) / 4, cuuint64_t(w.tileRows), 1},
      {cuuint64_t(groupBytes), cuuint64_t(groupBytes) * cuuint64_t(w.tileRows)},
      {cuuint32_t(boxes.scaleBytes) / 4, cuuint32_t(boxes.rowTiles), 1},
      CU_TENSOR_MAP_SWIZZLE_NONE};
  return encode(&maps->scales, scalesView, err);
}

}  // namespace aq::cuda::int4
