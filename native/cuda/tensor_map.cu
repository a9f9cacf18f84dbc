// tensor_map.cu: the driver's encoder of tensor maps, asked for by name so that nothing is linked.
#include "native/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include "native/cuda/check.h"

namespace aq::cuda {

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

}  // namespace

int32_t encodeMap(CUtensorMap* map, const MappedView& view, aq_error* err) {
  if (!encoder())
    return fail(err, AQ_CUDA,
                "cuda: the driver has no cuTensorMapEncodeTiled; install 525 or later.");
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result =
      encoder()(map, view.type, view.rank, const_cast<void*>(view.data), view.sizes, view.strides,
                view.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, view.swizzle,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return AQ_OK;
  return fail(err, AQ_CUDA, "cuda: the driver refused a tensor map of %llu x %llu x %llu (%d).",
              static_cast<unsigned long long>(view.sizes[0]),
              static_cast<unsigned long long>(view.sizes[1]),
              static_cast<unsigned long long>(view.rank > 2 ? view.sizes[2] : 1), int(result));
}

int32_t byteMatrixMap(CUtensorMap* map, const void* data, int64_t rows, int64_t cols, int64_t pitch,
                      int32_t boxRows, aq_error* err) {
  const MappedView view = {CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           2,
                           data,
                           {cuuint64_t(cols), cuuint64_t(rows)},
                           {cuuint64_t(pitch)},
                           {128, cuuint32_t(boxRows)},
                           CU_TENSOR_MAP_SWIZZLE_128B};
  return encodeMap(map, view, err);
}

}  // namespace aq::cuda
