// fault.h: what a kernel reports when it finds bad data: the first fault is kept in pinned host
// memory and raised by the next wait for the queue (backend.cu), so that no kernel has to be waited
// for. Results after a fault are undefined but never outside their tensors.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "native/abi/backend.h"

namespace aq::cuda {

enum class FaultKind : int32_t {
  kNone = 0,
  kSingular = 1,     // lu_inverse: matrix `index` of the batch
  kTokenId = 2,      // cross_entropy, gather_rows: ids[index] = value is outside the table
  kNotPositive = 3,  // gptq: column `index`
  kCachePlace = 4,   // cached_attention: token `index`, value = slot << 32 | position
};

struct Fault {
  int32_t kind;  // FaultKind; 0 while there is none
  int32_t pad;
  int64_t index;
  int64_t value;
};

// Called by any thread of a kernel. Of several faults between two waits one is reported.
__device__ inline void raiseFault(Fault* fault, FaultKind kind, int64_t index, int64_t value = 0) {
  if (atomicCAS_system(&fault->kind, 0, int32_t(kind)) != 0) return;
  fault->index = index;
  fault->value = value;
  __threadfence_system();
}

// After the queue was waited for: AQ_OK, or the fault as an error, which is then forgotten.
int32_t takeFault(Fault* fault, aq_error* err);

}  // namespace aq::cuda
