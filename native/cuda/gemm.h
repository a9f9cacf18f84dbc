// gemm.h: dense products for the other kernels: C = alpha op(A) op(B) + beta C + bias, row-major,
// batched, by cuBLASLt where it can be opened and by our own tiles where not (gemm.cu).
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// What a matrix holds is row-major with `ld` elements between the starts of rows; matrix i of a
// batch starts `stride` elements after matrix i - 1 (0: all the same).
struct GemmMatrix {
  const void* data = nullptr;
  int64_t ld = 0;
  int64_t stride = 0;
  bool transpose = false;  // op(X) = X^T
};

struct Gemm {
  int64_t m = 0, n = 0, k = 0;  // op(A) [m, k], op(B) [k, n], C [m, n]
  int64_t batch = 1;
  // Of the operands. AQ_F64 -> C f64; AQ_F32 -> C of resultDtype, computed in `precision`; AQ_BF16,
  // AQ_F16 -> C of resultDtype, f32 sums; AQ_I8 -> C i32, exact (then op(A) is not transposed,
  // op(B) is, alpha 1, beta 0, no bias).
  int32_t dtype = AQ_F32;
  // AQ_F32 or AQ_BF16: then alpha op(A) op(B) + beta C + bias is an f32 that is rounded once. Not
  // looked at for AQ_F64 and AQ_I8 operands.
  int32_t resultDtype = AQ_F32;
  Precision precision = Precision::kF32;  // for AQ_F32 operands only
  GemmMatrix a, b;
  void* c = nullptr;
  int64_t ldc = 0, strideC = 0;
  double alpha = 1, beta = 0;
  // In device memory, of the type of the sums (f64 or f32; not for AQ_I8): the product is times this
  // too, before what is added to it. Null: 1.
  const void* factor = nullptr;
  const void* bias = nullptr;  // [n], of C's type (f32 for a BF16 C), added to every row; or null

  bool hasShortResult() const {
    return resultDtype == AQ_BF16 && dtype != AQ_F64 && dtype != AQ_I8;
  }
};

// Enqueues the product. m, n, k or batch of 0: C is beta C + bias where it has elements.
int32_t gemm(aq_queue* queue, const Gemm& product, aq_error* err);

// Whether products run on cuBLASLt (false: on our own tiles), for doctor, tests and the bench.
bool hasBlas(aq_queue* queue);

// Frees what gemm keeps for the queue; called by queue_close after the stream is idle.
void closeBlas(aq_queue* queue);

}  // namespace aq::cuda
