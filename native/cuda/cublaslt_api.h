// cublaslt_api.h: the few types, numbers and functions of cuBLASLt's C interface that products
// need, as versions 12 and 13 of the library share them. The self-check in cublaslt.cu guards
// against a library that differs.
#pragma once
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace aq::cuda::lt {

using Handle = void*;
using MatmulDesc = void*;
using Layout = void*;
using Preference = void*;

struct Algo {
  uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  size_t workspaceSize;
  int32_t state;
  float wavesCount;
  int32_t reserved[4];
};

constexpr int32_t kSuccess = 0;
enum DataType : int32_t { kR32F = 0, kR64F = 1, kR16F = 2, kR8I = 3, kR32I = 10, kR16BF = 14 };
enum ComputeType : int32_t { kCompute32F = 68, kCompute64F = 70, kCompute32I = 72 };
enum DescAttribute : int32_t {
  kDescPointerMode = 2,
  kDescTransA = 3,
  kDescTransB = 4,
  kDescEpilogue = 7,
  kDescBiasPointer = 8
};
enum LayoutAttribute : int32_t { kLayoutBatchCount = 5, kLayoutBatchStride = 6 };
enum PreferenceAttribute : int32_t {
  kMaxWorkspace = 1,
  kReductionSchemes = 3,  // a mask: what parts of sums over k may be held in
  kMinAlignmentA = 5      // B, C, D follow
};
constexpr uint32_t kReduceInComputeType = 2;
constexpr int32_t kOpTranspose = 1;
constexpr int32_t kScalarsOnDevice = 1;  // of the pointer mode: alpha and beta
constexpr int32_t kEpilogueBias = 4;

struct Library {
  int32_t (*create)(Handle*);
  int32_t (*destroy)(Handle);
  int32_t (*descCreate)(MatmulDesc*, int32_t compute, int32_t scale);
  int32_t (*descDestroy)(MatmulDesc);
  int32_t (*descSet)(MatmulDesc, int32_t attribute, const void*, size_t);
  int32_t (*layoutCreate)(Layout*, int32_t type, uint64_t rows, uint64_t cols, int64_t ld);
  int32_t (*layoutDestroy)(Layout);
  int32_t (*layoutSet)(Layout, int32_t attribute, const void*, size_t);
  int32_t (*preferenceCreate)(Preference*);
  int32_t (*preferenceDestroy)(Preference);
  int32_t (*preferenceSet)(Preference, int32_t attribute, const void*, size_t);
  int32_t (*heuristic)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference,
                       int32_t wanted, Heuristic*, int32_t* found);
  int32_t (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, Layout, const void* b,
                    Layout, const void* beta, const void* c, Layout, void* d, Layout, const Algo*,
                    void* workspace, size_t workspaceBytes, cudaStream_t);

  bool load(void* file) {
    const auto find = [file](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
      return function != nullptr;
    };
    return find(create, "cublasLtCreate") && find(destroy, "cublasLtDestroy") &&
           find(descCreate, "cublasLtMatmulDescCreate") &&
           find(descDestroy, "cublasLtMatmulDescDestroy") &&
           find(descSet, "cublasLtMatmulDescSetAttribute") &&
           find(layoutCreate, "cublasLtMatrixLayoutCreate") &&
           find(layoutDestroy, "cublasLtMatrixLayoutDestroy") &&
           find(layoutSet, "cublasLtMatrixLayoutSetAttribute") &&
           find(preferenceCreate, "cublasLtMatmulPreferenceCreate") &&
           find(preferenceDestroy, "cublasLtMatmulPreferenceDestroy") &&
           find(preferenceSet, "cublasLtMatmulPreferenceSetAttribute") &&
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul");
  }
};

// Opened once per process and kept. AQ_CUBLASLT: 0 for no library, or the name of the one to open.
inline const Library* openLibrary() {
  static const Library* const opened = []() -> const Library* {
    static Library library;
    const char* const choice = std::getenv("AQ_CUBLASLT");
    if (choice && std::strcmp(choice, "0") == 0) return nullptr;
    const char* const kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12",
                                  "/usr/local/cuda/lib64/libcublasLt.so.13",
                                  "/usr/local/cuda/lib64/libcublasLt.so.12", "libcublasLt.so"};
    const auto tryOpen = [](const char* name) {
      void* const file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      return file && library.load(file);
    };
    if (choice && *choice) return tryOpen(choice) ? &library : nullptr;
    for (const char* name : kNames) {
      if (tryOpen(name)) return &library;
    }
    return nullptr;
  }();
  return opened;
}

}  // namespace aq::cuda::lt
