// cholesky.h: the inverse of the Cholesky factor of a positive definite matrix, in f64
// (cholesky.cu).
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Bytes of `work` that inverseFactor needs beside the matrix.
uint64_t inverseFactorBytes(int64_t n);

// Enqueues matrix <- L^-1, zeros above the diagonal, where matrix = L Lt; n > 0, and only the lower
// triangle is read. A pivot in row i that is not positive and finite raises kNotPositive with the
// index n - 1 - i (the caller's matrix is in reverse order), and the result is then meaningless.
int32_t inverseFactor(aq_queue* queue, double* matrix, int64_t n, double* work, aq_error* err);

}  // namespace aq::cuda
