// check.h: errors of CUDA calls turned into the ABI's codes. CUDA_CHECK and LAUNCH_CHECK return from
// the ABI function they stand in; that function has an `aq_error* err`.
#pragma once
#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "native/abi/backend.h"

namespace aq::cuda {

__attribute__((format(printf, 3, 4))) inline int32_t fail(aq_error* err, int32_t code,
                                                          const char* format, ...) {
  err->code = code;
  va_list args;
  va_start(args, format);
  vsnprintf(err->text, sizeof err->text, format, args);
  va_end(args);
  return code;
}

inline int32_t failCuda(aq_error* err, cudaError_t status, const char* what) {
  const int32_t code = status == cudaErrorMemoryAllocation ? AQ_OOM : AQ_CUDA;
  return fail(err, code, "cuda: %s failed: %s (%s).", what, cudaGetErrorString(status),
              cudaGetErrorName(status));
}

}  // namespace aq::cuda

#define CUDA_CHECK(call)                              \
  do {                                                \
    const cudaError_t status_ = (call);               \
    if (status_ != cudaSuccess) {                     \
      (void)cudaGetLastError();                       \
      return aq::cuda::failCuda(err, status_, #call); \
    }                                                 \
  } while (0)

// After every kernel launch: a bad configuration is reported here and not at some later call.
#define LAUNCH_CHECK(kernel)                                            \
  do {                                                                  \
    const cudaError_t status_ = cudaGetLastError();                     \
    if (status_ != cudaSuccess) {                                       \
      return aq::cuda::failCuda(err, status_, "the launch of " kernel); \
    }                                                                   \
  } while (0)
