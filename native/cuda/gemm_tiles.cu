// gemm_tiles: dense products on our own kernels, the fallback of gemm.
//
// Math      C = alpha factor op(A) op(B) + beta C + bias; beta 0 does not read C.
// Layout    any strides, sizes and alignments. f32, f64: blocks of 64 x 64 x 16 on the plain cores,
//           4 x 4 sums a thread. bf16, f16, i8: blocks of 128 x 128 on the tensor cores, 64 bytes
//           of k a stage, two stages in flight by cp.async; operands stay in shared memory as they
//           are stored, and ldmatrix transposes what is stored the other way. 16-byte copies where
//           the addresses allow and the chunk lies inside; else element by element.
// Cost      2 m n k flop; every operand is read once per 64 or 128 rows of the other one, from L2.
// Roofline  the unit's arithmetic. This is the portable path: cuBLASLt is what runs where it can.
// Versions  v1 (this).
// Numerics  sums in a fixed order over k; f32 sums of bf16 and f16 products, exact i32 sums of i8.
#include "native/cuda/gemm_tiles.h"

#include <algorithm>
#include <type_traits>

#include "native/cuda/check.h"
#include "native/cuda/device/mma.cuh"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;

// A product as the kernels see it; C and the sums it is made of are of type R.
template <class E, class R>
struct Product {
  const E* a;
  const E* b;
  R* c;
  const R* bias;
  const R* factor;
  int64_t m, n, k, batch;
  int64_t lda, ldb, ldc;
  int64_t strideA, strideB, strideC;
  R alpha, beta;
  bool vectorA, vectorB;  // 16-byte chunks of the stored rows are aligned
};

template <class E, class R>
__device__ inline void storeResult(const Product<E, R>& p, R* c, int64_t i, int64_t j, R sum) {
  if (i >= p.m || j >= p.n) return;
  R* const at = c + i * p.ldc + j;
  R value = p.alpha * sum;
  if (p.factor) value *= *p.factor;
  if (p.bias) value += p.bias[j];
  if (p.beta != R(0)) value += p.beta * *at;
  *at = value;
}

// ---------------------------------------------------------------- plain cores

template <class T, bool kTransA, bool kTransB>
__global__ __launch_bounds__(kThreads) void plainTiles(Product<T, T> p, int64_t tilesN) {
  constexpr int kTile = 64, kDepth = 16, kEach = 4;
  __shared__ T tileA[kDepth][kTile + 4], tileB[kDepth][kTile + 4];
  const int64_t i0 = blockIdx.x / tilesN * kTile, j0 = blockIdx.x % tilesN * kTile;
  const int tid = threadIdx.x, ty = tid / 16, tx = tid % 16;
  for (int64_t z = blockIdx.z; z < p.batch; z += gridDim.z) {
    const T* const a = p.a + z * p.strideA;
    const T* const b = p.b + z * p.strideB;
    T sum[kEach][kEach] = {};
    for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
#pragma unroll
      for (int r = 0; r < kTile * kDepth / kThreads; r++) {
        // Neighbouring threads read neighbouring elements, whichever way the operand is stored.
        const int along = tid + r * kThreads;
        const int iA = kTransA ? along % kTile : along / kDepth;
        const int kA = kTransA ? along / kTile : along % kDepth;
        const int jB = kTransB ? along / kDepth : along % kTile;
        const int kB = kTransB ? along % kDepth : along / kTile;
        const bool insideA = i0 + iA < p.m && k0 + kA < p.k;
        const bool insideB = j0 + jB < p.n && k0 + kB < p.k;
        const int64_t atA = kTransA ? (k0 + kA) * p.lda + i0 + iA : (i0 + iA) * p.lda + k0 + kA;
        const int64_t atB = kTransB ? (j0 + jB) * p.ldb + k0 + kB : (k0 + kB) * p.ldb + j0 + jB;
        tileA[kA][iA] = insideA ? a[atA] : T(0);
        tileB[kB][jB] = insideB ? b[atB] : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kDepth; k++) {
        T fa[kEach], fb[kEach];
#pragma unroll
        for (int e = 0; e < kEach; e++) {
          fa[e] = tileA[k][ty * kEach + e];
          fb[e] = tileB[k][tx * kEach + e];
        }
#pragma unroll
        for (int y = 0; y < kEach; y++)
#pragma unroll
          for (int x = 0; x < kEach; x++) sum[y][x] += fa[y] * fb[x];
      }
      __syncthreads();
    }
    T* const c = p.c + z * p.strideC;
#pragma unroll
    for (int y = 0; y < kEach; y++)
#pragma unroll
      for (int x = 0; x < kEach; x++)
        storeResult(p, c, i0 + ty * kEach + y, j0 + tx * kEach + x, sum[y][x]);
  }
}

// ---------------------------------------------------------------- tensor cores

constexpr int kBlock = 128;      // rows and columns of C of a block
constexpr int kDepthBytes = 64;  // of k a stage
constexpr int kStages = 2;
constexpr int kWarpRows = 64, kWarpCols = 32;  // of C of a warp; 2 x 4 warps

// One operand's part of a stage. k runs along its stored rows (kAlongK: kBlock rows of kDepth
// elements) or across them (kDepth rows of kBlock elements). The padding spreads the eight rows
// that ldmatrix reads at once over all banks.
template <class E, bool kAlongK>
struct Stage {
  static constexpr int kDepth = kDepthBytes / int(sizeof(E));
  static constexpr int kRows = kAlongK ? kBlock : kDepth;
  static constexpr int kRowBytes = kAlongK ? kDepthBytes : kBlock * int(sizeof(E));
  static constexpr int kPitch = kRowBytes + 16;
  static constexpr int kBytes = kRows * kPitch;

  // Copies from the stored matrix of `rows` x `cols`, starting at (row0, col0); zeros outside.
  static __device__ void fill(char* stage, const E* data, int64_t ld, int64_t rows, int64_t cols,
                              int64_t row0, int64_t col0, bool vector) {
    constexpr int kChunk = 16 / int(sizeof(E)), kPerRow = kRowBytes / 16;
    static_assert(kRows * kPerRow % kThreads == 0);
#pragma unroll
    for (int r = 0; r < kRows * kPerRow / kThreads; r++) {
      const int chunk = int(threadIdx.x) + r * kThreads;
      const int row = chunk / kPerRow, col = chunk % kPerRow * kChunk;
      char* const at = stage + row * kPitch + chunk % kPerRow * 16;
      const int64_t i = row0 + row, j = col0 + col;
      if (vector && i < rows && j + kChunk <= cols) {
        copyAsync16(sharedAddress(at), data + i * ld + j);
      } else {
#pragma unroll
        for (int e = 0; e < kChunk; e++) {
          const bool inside = i < rows && j + e < cols;
          reinterpret_cast<E*>(at)[e] = inside ? data[i * ld + j + e] : E(0);
        }
      }
    }
  }

  // The fragments of 16 rows (of A) or columns (of B) from `first` on, and 32 bytes of k from step
  // `step` on, in the order top left, bottom left, top right, bottom right where right is k + 16 B.
  static __device__ void load(uint32_t (&tile)[4], uint32_t stage, int first, int step) {
    const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2, high = lane / 16;
    if constexpr (kAlongK) {
      loadTiles(tile, stage + (first + low * 8 + row) * kPitch + step * 32 + high * 16);
    } else {
      loadTilesTransposed(tile,
                          stage + (step * 16 + high * 8 + row) * kPitch + (first + low * 8) * 2);
    }
  }
};

template <class E, bool kAlongA, bool kAlongB>
__global__ __launch_bounds__(kThreads) void tensorTiles(Product<E, typename SumOf<E>::Type> p,
                                                        int64_t tilesN) {
  using R = typename SumOf<E>::Type;
  using StageA = Stage<E, kAlongA>;
  using StageB = Stage<E, kAlongB>;
  __shared__ alignas(16) char sharedA[kStages][StageA::kBytes], sharedB[kStages][StageB::kBytes];
  const int64_t i0 = blockIdx.x / tilesN * kBlock, j0 = blockIdx.x % tilesN * kBlock;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warpI = warp % 2 * kWarpRows, warpJ = warp / 2 * kWarpCols;
  const int64_t steps = (p.k + StageA::kDepth - 1) / StageA::kDepth;
  for (int64_t z = blockIdx.z; z < p.batch; z += gridDim.z) {
    const E* const a = p.a + z * p.strideA;
    const E* const b = p.b + z * p.strideB;
    const auto fill = [&](int64_t step) {
      if (step < steps) {
        const int64_t k0 = step * StageA::kDepth;
        StageA::fill(sharedA[step % kStages], a, p.lda, kAlongA ? p.m : p.k, kAlongA ? p.k : p.m,
                     kAlongA ? i0 : k0, kAlongA ? k0 : i0, p.vectorA);
        StageB::fill(sharedB[step % kStages], b, p.ldb, kAlongB ? p.n : p.k, kAlongB ? p.k : p.n,
                     kAlongB ? j0 : k0, kAlongB ? k0 : j0, p.vectorB);
      }
      commitCopies();
    };
    R sum[kWarpRows / 16][kWarpCols / 8][4] = {};
    fill(0);
    for (int64_t step = 0; step < steps; step++) {
      fill(step + 1);
      waitCopies<1>();
      __syncthreads();
      const uint32_t stageA = sharedAddress(sharedA[step % kStages]);
      const uint32_t stageB = sharedAddress(sharedB[step % kStages]);
#pragma unroll
      for (int part = 0; part < kDepthBytes / 32; part++) {
        uint32_t fa[kWarpRows / 16][4], fb[kWarpCols / 16][4];
#pragma unroll
        for (int y = 0; y < kWarpRows / 16; y++) StageA::load(fa[y], stageA, warpI + y * 16, part);
#pragma unroll
        for (int x = 0; x < kWarpCols / 16; x++) StageB::load(fb[x], stageB, warpJ + x * 16, part);
#pragma unroll
        for (int y = 0; y < kWarpRows / 16; y++)
#pragma unroll
          for (int x = 0; x < kWarpCols / 8; x++) {
            const uint32_t column[2] = {fb[x / 2][x % 2], fb[x / 2][x % 2 + 2]};
            mma(sum[y][x], fa[y], column, E(0));
          }
      }
      __syncthreads();
    }
    R* const c = p.c + z * p.strideC;
#pragma unroll
    for (int y = 0; y < kWarpRows / 16; y++)
#pragma unroll
      for (int x = 0; x < kWarpCols / 8; x++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          storeResult(p, c, i0 + warpI + y * 16 + lane / 4 + e / 2 * 8,
                      j0 + warpJ + x * 8 + lane % 4 * 2 + e % 2, sum[y][x][e]);
  }
}

// ---------------------------------------------------------------- launch

template <class E, class R>
Product<E, R> productOf(const Gemm& g) {
  const auto isVector = [](const GemmMatrix& x) {
    return (reinterpret_cast<uintptr_t>(x.data) | uint64_t(x.ld * int64_t(sizeof(E))) |
            uint64_t(x.stride * int64_t(sizeof(E)))) %
               16 ==
           0;
  };
  return {static_cast<const E*>(g.a.data),
          static_cast<const E*>(g.b.data),
          static_cast<R*>(g.c),
          static_cast<const R*>(g.bias),
          static_cast<const R*>(g.factor),
          g.m,
          g.n,
          g.k,
          g.batch,
          g.a.ld,
          g.b.ld,
          g.ldc,
          g.a.stride,
          g.b.stride,
          g.strideC,
          R(g.alpha),
          R(g.beta),
          isVector(g.a),
          isVector(g.b)};
}

template <class F>
int32_t launch(const Gemm& g, int tile, aq_error* err, F&& start) {
  const int64_t tilesN = (g.n + tile - 1) / tile, tiles = (g.m + tile - 1) / tile * tilesN;
  if (tiles > INT32_MAX) {
    return fail(err, AQ_SHAPE, "gemm: a result of %lld x %lld is too large for one product.",
                static_cast<long long>(g.m), static_cast<long long>(g.n));
  }
  start(dim3(unsigned(tiles), 1, unsigned(std::min<int64_t>(g.batch, 65535))), tilesN);
  LAUNCH_CHECK("gemm");
  return AQ_OK;
}

// Calls f with what is transposed as two compile-time truths.
template <class F>
void visitTransposes(const Gemm& g, F&& f) {
  const std::true_type yes;
  const std::false_type no;
  if (g.a.transpose) {
    g.b.transpose ? f(yes, yes) : f(yes, no);
  } else {
    g.b.transpose ? f(no, yes) : f(no, no);
  }
}

template <class T>
int32_t runPlain(aq_queue* queue, const Gemm& g, aq_error* err) {
  return launch(g, 64, err, [&](dim3 grid, int64_t tilesN) {
    visitTransposes(g, [&](auto transA, auto transB) {
      plainTiles<T, transA.value, transB.value>
          <<<grid, kThreads, 0, queue->stream>>>(productOf<T, T>(g), tilesN);
    });
  });
}

template <class E>
int32_t runTensor(aq_queue* queue, const Gemm& g, aq_error* err) {
  const auto product = productOf<E, typename SumOf<E>::Type>(g);
  return launch(g, kBlock, err, [&](dim3 grid, int64_t tilesN) {
    if constexpr (std::is_same_v<E, int8_t>) {
      tensorTiles<E, true, true><<<grid, kThreads, 0, queue->stream>>>(product, tilesN);
    } else {
      visitTransposes(g, [&](auto transA, auto transB) {
        tensorTiles<E, !transA.value, transB.value>
            <<<grid, kThreads, 0, queue->stream>>>(product, tilesN);
      });
    }
  });
}

}  // namespace

int32_t tileProduct(aq_queue* queue, const Gemm& product, aq_error* err) {
  switch (product.dtype) {
    case AQ_F64:
      return runPlain<double>(queue, product, err);
    case AQ_F32:
      return runPlain<float>(queue, product, err);
    case AQ_BF16:
      return runTensor<__nv_bfloat16>(queue, product, err);
    case AQ_F16:
      return runTensor<__half>(queue, product, err);
    case AQ_I8:
      return runTensor<int8_t>(queue, product, err);
    default:
      return fail(err, AQ_DTYPE, "gemm: takes f64, f32, bf16, f16 or i8, not dtype %d.",
                  product.dtype);
  }
}

}  // namespace aq::cuda
