// tensor_map.cu: the driver's encoder of tensor maps, asked for by name so that nothing is linked.
#include "native/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include "native/cuda/check.h"

namespace aq::cuda {

int32_t byteMatrixMap(CUtensorMap* map, const void* data, int64_t rows, int64_t cols, int64_t pitch,
                      int32_t boxRows, aq_error* err) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    constexpr unsigned kFirstVersion = 12000;
    const cudaError_t status = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &found, kFirstVersion, cudaEnableDefault, &result);
    (void)cudaGetLastError();
    return status == cudaSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (!encode)
    return fail(err, AQ_CUDA,
                "cuda: the driver has no cuTensorMapEncodeTiled; install 525 or later.");
  const cuuint64_t sizes[] = {cuuint64_t(cols), cuuint64_t(rows)};
  const cuuint64_t strides[] = {cuuint64_t(pitch)};
  const cuuint32_t box[] = {128, cuuint32_t(boxRows)}, steps[] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return AQ_OK;
  return fail(err, AQ_CUDA, "cuda: the driver refused a tensor map of %lld x %lld (error %d).",
              static_cast<long long>(rows), static_cast<long long>(cols), int(result));
}

}  // namespace aq::cuda
