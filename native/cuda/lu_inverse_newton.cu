// lu_inverse_newton: inverses of nearly diagonal matrices of more than 128 rows, or of ones whose
// neighbour's inverse is known, f32.
//
// Math      Newton's method, in a few rounds: R = I - A X, X <- X + X R, which squares the
//           residual. With D the diagonal of A, A = D (I + F) and X = (I + H) D^-1, that is R = -(F
//           + H + F H), H <- H + R + H R, where F and H have no unit diagonal: entries below 1, and
//           small where A is nearly diagonal. Only F H and H R have n^3 terms; they take f16
//           operands, and all else is f32. The last round leaves (H + R + H R + I) D^-1, the
//           inverse. From x0 it takes two rounds: a start within 5 % ends at 6e-6. Without, the
//           start is H = -F, whose residual is F^2: after two rounds an F of norm 0.2 ends at 3e-6,
//           after four one of 0.67. At the end the residual is estimated (lu_residual.cuh); where
//           it is too large, `wanted` says so to the launches of lu_inverse_large.cu that follow.
// Layout    products by gemm; between them passes over rows, a thread a few columns, with 16-byte
//           accesses where n and the addresses allow. f16 numbers are kept times 2^10, which puts
//           1e-7 .. 64 in their range; their rows are padded to 16 bytes.
// Cost      a round: 4 n^3 flop in f16, and 26 n^2 bytes in the passes.
// Roofline  4096^2, two rounds: 0.55 Tflop, 0.56 ms at the f16 rate of an H100; 0.87 GB, 0.29 ms.
//           Measured there, H100 80GB HBM3, driver 580: 1.2 ms.
// Versions  v1 D apart, E = A - D and Z = X - D^-1 in bf16: residuals ten times these; v2 (this).
// Numerics  residuals of 4e-8 to 1e-6 for matrices without heavy entries beside D.
#include <cuda_fp16.h>

#include <algorithm>
#include <utility>

#include "native/cuda/check.h"
#include "native/cuda/device/lu_residual.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/lu_inverse.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
// Rounds from x0 and from D^-1 (I - F); more of the latter for large matrices, where a round costs
// less than a tenth of the blocked inverse that it may spare.
constexpr int kWarmRounds = 2, kColdRounds = 2, kLargeColdRounds = 4;
constexpr int32_t kLargeSize = 1024;
constexpr float kScale = 1024;  // of what is kept in f16

// The tensors of a batch; f16 ones have rows of `pitch`, `diagonal` too.
struct Newton {
  const float* a;
  const float* start;  // x0, or null
  float* x;            // H from the end of the first round on, at last the inverse
  float* diagonal;     // [count, pitch]: of a
  float* product;      // [count, n, n]: F H, kScale^2 times
  __half* f;           // [count, n, pitch]
  __half* h;           // [count, n, pitch]
  __half* r;           // [count, n, pitch]: in the last round R D^-1
  int64_t count;
  int32_t n, pitch, rounds;

  // The matrix of this block alone.
  __device__ Newton own() const {
    const int64_t b = blockIdx.z, plain = b * n * n, padded = b * n * pitch;
    return {a + plain,
            start ? start + plain : nullptr,
            x + plain,
            diagonal + b * pitch,
            product + plain,
            f + padded,
            h + padded,
            r + padded,
            1,
            n,
            pitch,
            rounds};
  }
};

__global__ __launch_bounds__(kThreads) void takeDiagonal(Newton batch) {
  const Newton m = batch.own();
  const int32_t i = int32_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < m.n) m.diagonal[i] = m.a[int64_t(i) * (m.n + 1)];
}

template <int kVec>
__device__ inline void storeScaled(__half* to, const Vec<float, kVec>& value) {
  Vec<__half, kVec> rounded;
#pragma unroll
  for (int c = 0; c < kVec; c++) rounded.lane[c] = __float2half_rn(kScale * value.lane[c]);
  storeVec(to, 0, rounded);
}

// kVec columns from j on of F and H.
template <int kVec>
__device__ inline Vec<float, kVec> loadF(const Newton& m, int32_t i, int32_t j) {
  const float inverse = 1.f / m.diagonal[i];
  auto f = loadVec<float, kVec>(m.a + int64_t(i) * m.n + j, 0);
#pragma unroll
  for (int c = 0; c < kVec; c++) f.lane[c] = i == j + c ? 0.f : f.lane[c] * inverse;
  return f;
}
template <int kVec>
__device__ inline Vec<float, kVec> loadH(const Newton& m, int round, int32_t i, int32_t j,
                                         const Vec<float, kVec>& f,
                                         const Vec<float, kVec>& columns) {
  const int64_t at = int64_t(i) * m.n + j;
  if (round > 0) return loadVec<float, kVec>(m.x + at, 0);
  Vec<float, kVec> h;
  if (m.start) {
    h = loadVec<float, kVec>(m.start + at, 0);
#pragma unroll
    for (int c = 0; c < kVec; c++) {
      h.lane[c] = fmaf(h.lane[c], columns.lane[c], i == j + c ? -1.f : 0.f);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kVec; c++) h.lane[c] = -f.lane[c];
  }
  return h;
}

// F and H in f16; F is the same in all rounds.
template <int kVec>
__global__ __launch_bounds__(kThreads) void roundFactors(Newton batch, int round) {
  const Newton m = batch.own();
  const int32_t j = int32_t(blockIdx.x * blockDim.x + threadIdx.x) * kVec;
  if (j >= m.n) return;
  const auto columns = loadVec<float, kVec>(m.diagonal + j, 0);
#pragma unroll 2
  for (int32_t i = blockIdx.y; i < m.n; i += gridDim.y) {
    const int64_t to = int64_t(i) * m.pitch + j;
    Vec<float, kVec> f = {};
    if (round == 0) {
      f = loadF<kVec>(m, i, j);
      storeScaled(m.f + to, f);
    }
    storeScaled(m.h + to, loadH<kVec>(m, round, i, j, f, columns));
  }
}

// R from F H, in f16, and x = H + R; in the last round both times D^-1, and x with its ones.
template <int kVec>
__global__ __launch_bounds__(kThreads) void findResidual(Newton batch, int round) {
  const Newton m = batch.own();
  const int32_t j = int32_t(blockIdx.x * blockDim.x + threadIdx.x) * kVec;
  if (j >= m.n) return;
  const auto columns = loadVec<float, kVec>(m.diagonal + j, 0);
  const bool isLast = round + 1 == m.rounds;
  Vec<float, kVec> scale;
#pragma unroll
  for (int c = 0; c < kVec; c++) scale.lane[c] = isLast ? 1.f / columns.lane[c] : 1.f;
#pragma unroll 2
  for (int32_t i = blockIdx.y; i < m.n; i += gridDim.y) {
    const int64_t at = int64_t(i) * m.n + j;
    const auto f = loadF<kVec>(m, i, j);
    const auto h = loadH<kVec>(m, round, i, j, f, columns);
    const auto product = loadVec<float, kVec>(m.product + at, 0);
    Vec<float, kVec> r, next;
#pragma unroll
    for (int c = 0; c < kVec; c++) {
      const float one = isLast && i == j + c ? 1.f : 0.f;
      const float residual = -fmaf(product.lane[c], 1 / (kScale * kScale), f.lane[c] + h.lane[c]);
      r.lane[c] = residual * scale.lane[c];
      next.lane[c] = (h.lane[c] + residual + one) * scale.lane[c];
    }
    storeScaled(m.r + int64_t(i) * m.pitch + j, r);
    storeVec(m.x + at, 0, next);
  }
}

__global__ __launch_bounds__(kThreads) void applyResult(LuCheck check) { check.apply(); }
__global__ __launch_bounds__(kThreads) void compareResult(LuCheck check) { check.compare(); }
__global__ __launch_bounds__(kThreads) void judgeResult(LuCheck check) {
  check.judge(kLuLargeLimit);
}

// c = alpha left right + beta c
int32_t multiply(aq_queue* queue, const Newton& m, const __half* left, const __half* right,
                 float* c, double alpha, double beta, aq_error* err) {
  Gemm product;
  product.m = product.n = product.k = m.n;
  product.dtype = AQ_F16;
  product.batch = m.count;
  product.a = {left, m.pitch, int64_t(m.n) * m.pitch, false};
  product.b = {right, m.pitch, int64_t(m.n) * m.pitch, false};
  product.c = c;
  product.ldc = m.n;
  product.strideC = int64_t(m.n) * m.n;
  product.alpha = alpha;
  product.beta = beta;
  return gemm(queue, product, err);
}

template <int kVec>
int32_t improve(aq_queue* queue, const Newton& m, aq_error* err) {
  const int32_t vectors = (m.n + kVec - 1) / kVec;
  const unsigned threads = unsigned(std::min(kThreads, (vectors + 31) / 32 * 32));
  const unsigned across = (unsigned(vectors) + threads - 1) / threads;
  const int64_t shares = 16 * queue->multiprocessors / (across * m.count);
  const dim3 grid(across, unsigned(std::clamp<int64_t>(shares, 1, m.n)), unsigned(m.count));
  for (int round = 0; round < m.rounds; round++) {
    roundFactors<kVec><<<grid, threads, 0, queue->stream>>>(m, round);
    LAUNCH_CHECK("lu_inverse (factors)");
    if (multiply(queue, m, m.f, m.h, m.product, 1, 0, err) != AQ_OK) return err->code;
    findResidual<kVec><<<grid, threads, 0, queue->stream>>>(m, round);
    LAUNCH_CHECK("lu_inverse (residual)");
    const double unscaled = 1 / (double(kScale) * kScale);
    if (multiply(queue, m, m.h, m.r, m.x, unscaled, 1, err) != AQ_OK) return err->code;
  }
  return AQ_OK;
}

struct Sizes {
  int32_t pitch;
  uint64_t rounded, product, vectors, rows;

  explicit Sizes(int32_t n, int64_t count = 1)
      : pitch((n + 7) / 8 * 8),
        rounded(scratchBytes(uint64_t(count) * n * pitch * 2)),
        product(scratchBytes(uint64_t(count) * n * n * 4)),
        vectors(scratchBytes(uint64_t(count) * n * 16)),
        rows(scratchBytes(uint64_t(count) * pitch * 4)) {}

  uint64_t total() const { return 3 * rounded + product + vectors + 2 * rows; }
};

}  // namespace

uint64_t newtonBytes(int32_t size) { return Sizes(size).total(); }

int32_t refineInverse(aq_queue* queue, const LuBatch<float>& batch, int32_t* wanted,
                      aq_error* err) {
  const int32_t n = batch.size;
  const Sizes sizes(n, batch.count);
  Scratch memory(queue);
  if (memory.allocate(sizes.total(), "lu_inverse", err) != AQ_OK) return err->code;
  uint64_t used = 0;
  const auto take = [&](uint64_t bytes) { return std::exchange(used, used + bytes); };
  Newton m = {};
  m.a = batch.a;
  m.start = batch.start;
  m.x = batch.x;
  m.count = batch.count;
  m.n = n;
  m.pitch = sizes.pitch;
  m.rounds = m.start ? kWarmRounds : n > kLargeSize ? kLargeColdRounds : kColdRounds;
  m.f = memory.at<__half>(take(sizes.rounded));
  m.h = memory.at<__half>(take(sizes.rounded));
  m.r = memory.at<__half>(take(sizes.rounded));
  m.product = memory.at<float>(take(sizes.product));
  m.diagonal = memory.at<float>(take(sizes.rows));
  const dim3 rows(unsigned((n + kThreads - 1) / kThreads), 1, unsigned(m.count));
  takeDiagonal<<<rows, kThreads, 0, queue->stream>>>(m);
  LAUNCH_CHECK("lu_inverse (diagonal)");
  const bool isWide = n % 4 == 0 && isAligned16(m.a) && isAligned16(m.start) && isAligned16(m.x);
  const int32_t status = isWide ? improve<4>(queue, m, err) : improve<1>(queue, m, err);
  if (status != AQ_OK) return status;

  CUDA_CHECK(cudaMemsetAsync(wanted, 0, sizeof *wanted * size_t(m.count), queue->stream));
  LuCheck check = {};
  check.a = m.a;
  check.w = check.x = m.x;
  check.image = memory.at<float4>(take(sizes.vectors));
  check.error = memory.at<float>(take(sizes.rows));
  check.state = wanted;
  check.count = m.count;
  check.n = check.pitch = n;
  const int64_t most = 4 * queue->multiprocessors;
  const unsigned blocks = unsigned(std::min<int64_t>(most, (m.count * n + 7) / 8));
  applyResult<<<blocks, kThreads, 0, queue->stream>>>(check);
  compareResult<<<blocks, kThreads, 0, queue->stream>>>(check);
  judgeResult<<<unsigned(std::min<int64_t>(most, m.count)), kThreads, 0, queue->stream>>>(check);
  LAUNCH_CHECK("lu_inverse (check)");
  return AQ_OK;
}

}  // namespace aq::cuda
