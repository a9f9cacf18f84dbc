// cublaslt.cu: products on cuBLASLt. One plan per kind of product, so that one seen before costs
// one call; one small product of known values per dtype at its first use as a check of the library,
// which waits for the queue once.
#include "native/cuda/cublaslt.h"

#include <array>
#include <new>
#include <unordered_map>
#include <vector>

#include "native/cuda/check.h"
#include "native/cuda/cublaslt_api.h"
#include "native/cuda/cublaslt_check.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using namespace lt;

// ---------------------------------------------------------------- plans

constexpr uint64_t kWorkspaceBytes = 32u << 20;

// Numbers in device memory, behind the workspace, for products with a factor: these take their beta
// from there too. The self-check takes its factor from there.
struct Constants {
  double f64[3];
  float f32[3];
};
constexpr Constants kConstants = {{0, 1, 2}, {0, 1, 2}};

// Everything the choice of an algorithm depends on, as numbers.
using PlanKey = std::array<int64_t, 14>;

struct PlanKeyHash {
  size_t operator()(const PlanKey& key) const {
    uint64_t hash = 0x9E3779B97F4A7C15u;
    for (const int64_t part : key) {
      hash = (hash ^ uint64_t(part)) * 0xBF58476D1CE4E5B9u;
      hash ^= hash >> 29;
    }
    return size_t(hash);
  }
};

struct Plan {
  bool usable = false;
  MatmulDesc desc = nullptr;
  Layout first = nullptr, second = nullptr, result = nullptr;
  Algo algo = {};
  size_t workspaceBytes = 0;
};

enum class Verdict : int8_t { kUnknown, kGood, kBad };

struct Types {
  int32_t operand, result, compute, scale;
  int64_t bytes, resultBytes;
};

// Kinds of products: a dtype of operands with its own type of result, or BF16 with a BF16 result.
constexpr int32_t kShortResult = AQ_DTYPE_COUNT;
constexpr int32_t kKinds = AQ_DTYPE_COUNT + 1;

int32_t kindOf(const Gemm& g) { return g.hasShortResult() ? kShortResult : g.dtype; }

Types typesOf(int32_t kind) {
  switch (kind) {
    case AQ_F64:
      return {kR64F, kR64F, kCompute64F, kR64F, 8, 8};
    case kShortResult:
      return {kR16BF, kR16BF, kCompute32F, kR32F, 2, 2};
    case AQ_BF16:
      return {kR16BF, kR32F, kCompute32F, kR32F, 2, 4};
    case AQ_F16:
      return {kR16F, kR32F, kCompute32F, kR32F, 2, 4};
    case AQ_I8:
      return {kR8I, kR32I, kCompute32I, kR32I, 1, 4};
    default:
      return {kR32F, kR32F, kCompute32F, kR32F, 4, 4};
  }
}

// The power of two, up to what the library can make use of, that every matrix of a batch starts at.
uint32_t alignmentOf(const void* data, int64_t strideBytes) {
  constexpr uint64_t kMost = 256;
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | uint64_t(strideBytes) | kMost;
  return uint32_t(bits & (~bits + 1));
}

}  // namespace

struct Blas {
  const Library* library = nullptr;
  Handle handle = nullptr;
  void* workspace = nullptr;
  std::array<std::array<Verdict, 2>, kKinds> verdicts{};  // without a factor, with one
  std::unordered_map<PlanKey, Plan, PlanKeyHash> plans;

  // 0, 1 or 2 in device memory, as a scalar of a product.
  const void* constant(const Types& types, int value) const {
    const char* const at = static_cast<const char*>(workspace) + kWorkspaceBytes;
    const auto* const constants = reinterpret_cast<const Constants*>(at);
    if (types.scale == kR64F) return constants->f64 + value;
    return constants->f32 + value;
  }

  void destroy(const Plan& plan) const {
    if (plan.first) library->layoutDestroy(plan.first);
    if (plan.second) library->layoutDestroy(plan.second);
    if (plan.result) library->layoutDestroy(plan.result);
    if (plan.desc) library->descDestroy(plan.desc);
  }
};

namespace {

// A row-major matrix is its own transpose stored by columns, which is how the library sees it. So
// the product it is asked for is C^T = op(B)^T op(A)^T, with B first, and its "rows" are our
// columns: a bias per row there is a bias per column here.
Plan makePlan(const Blas& blas, const Gemm& g, const Types& types) {
  const Library& lt = *blas.library;
  Plan plan;
  bool ok = lt.descCreate(&plan.desc, types.compute, types.scale) == kSuccess;
  const auto set = [&](int32_t attribute, const auto& value) {
    ok = ok && lt.descSet(plan.desc, attribute, &value, sizeof value) == kSuccess;
  };
  const auto layout = [&](Layout& made, int32_t type, int64_t rows, int64_t cols, int64_t ld,
                          int64_t stride) {
    ok = ok && lt.layoutCreate(&made, type, uint64_t(rows), uint64_t(cols), ld) == kSuccess;
    if (!ok || g.batch == 1) return;
    const int32_t count = int32_t(g.batch);
    ok = lt.layoutSet(made, kLayoutBatchCount, &count, sizeof count) == kSuccess &&
         lt.layoutSet(made, kLayoutBatchStride, &stride, sizeof stride) == kSuccess;
  };
  if (g.b.transpose) set(kDescTransA, kOpTranspose);
  if (g.a.transpose) set(kDescTransB, kOpTranspose);
  if (g.factor) set(kDescPointerMode, kScalarsOnDevice);
  if (g.bias) {
    set(kDescEpilogue, kEpilogueBias);
    set(kDescBiasPointer, g.bias);
  }
  layout(plan.first, types.operand, g.b.transpose ? g.k : g.n, g.b.transpose ? g.n : g.k, g.b.ld,
         g.b.stride);
  layout(plan.second, types.operand, g.a.transpose ? g.m : g.k, g.a.transpose ? g.k : g.m, g.a.ld,
         g.a.stride);
  layout(plan.result, types.result, g.n, g.m, g.ldc, g.strideC);

  Preference preference = nullptr;
  ok = ok && lt.preferenceCreate(&preference) == kSuccess;
  const auto prefer = [&](int32_t attribute, const auto& value) {
    ok = ok && lt.preferenceSet(preference, attribute, &value, sizeof value) == kSuccess;
  };
  prefer(kMaxWorkspace, kWorkspaceBytes);
  // Parts of a sum stay f32 where the result is short; the sum is rounded once.
  if (g.hasShortResult()) prefer(kReductionSchemes, kReduceInComputeType);
  const uint32_t alignC = alignmentOf(g.c, g.strideC * types.resultBytes);
  const uint32_t alignments[] = {alignmentOf(g.b.data, g.b.stride * types.bytes),
                                 alignmentOf(g.a.data, g.a.stride * types.bytes), alignC, alignC};
  for (int32_t i = 0; i < 4; i++) prefer(kMinAlignmentA + i, alignments[i]);
  Heuristic best = {};
  int32_t found = 0;
  ok = ok && lt.heuristic(blas.handle, plan.desc, plan.first, plan.second, plan.result, plan.result,
                          preference, 1, &best, &found) == kSuccess;
  if (preference) lt.preferenceDestroy(preference);
  plan.usable = ok && found == 1 && best.state == kSuccess && best.workspaceSize <= kWorkspaceBytes;
  plan.algo = best.algo;
  plan.workspaceBytes = best.workspaceSize;
  return plan;
}

const Plan& planOf(Blas& blas, const Gemm& g, const Types& types) {
  const int64_t flags = kindOf(g) | g.a.transpose << 8 | g.b.transpose << 9 |
                        (g.bias != nullptr) << 10 | (g.factor != nullptr) << 11;
  const PlanKey key = {flags,
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
                       alignmentOf(g.a.data, g.a.stride * types.bytes),
                       alignmentOf(g.b.data, g.b.stride * types.bytes),
                       alignmentOf(g.c, g.strideC * types.resultBytes)};
  const auto known = blas.plans.find(key);
  if (known != blas.plans.end()) return known->second;
  return blas.plans.emplace(key, makePlan(blas, g, types)).first->second;
}

// False where the library refused the product; nothing was enqueued then.
bool enqueue(aq_queue* queue, const Gemm& g) {
  Blas& blas = *queue->blas;
  const Types types = typesOf(kindOf(g));
  const Plan& plan = planOf(blas, g, types);
  if (!plan.usable) return false;
  if (g.bias && blas.library->descSet(plan.desc, kDescBiasPointer, &g.bias, sizeof g.bias))
    return false;
  union Scalar {
    double f64;
    float f32;
    int32_t i32;
  };
  const auto scalar = [&](double value) {
    Scalar s;
    if (types.scale == kR64F) {
      s.f64 = value;
    } else if (types.scale == kR32F) {
      s.f32 = float(value);
    } else {
      s.i32 = int32_t(value);
    }
    return s;
  };
  const Scalar hostAlpha = scalar(g.alpha), hostBeta = scalar(g.beta);
  const void* const alpha = g.factor ? g.factor : &hostAlpha;
  const void* const beta = g.factor ? blas.constant(types, g.beta == 0 ? 0 : 1) : &hostBeta;
  return blas.library->matmul(blas.handle, plan.desc, alpha, g.b.data, plan.first, g.a.data,
                              plan.second, beta, g.c, plan.result, g.c, plan.result, &plan.algo,
                              blas.workspace, kWorkspaceBytes, queue->stream) == kSuccess;
}

// ---------------------------------------------------------------- self-check

// Computes one product of known values and compares every element.
int32_t selfCheck(aq_queue* queue, int32_t kind, bool hasFactor, bool* good, aq_error* err) {
  constexpr int64_t kM = 32, kN = 48, kK = 64;
  const Types types = typesOf(kind);
  const int32_t dtype = kind == kShortResult ? int32_t(AQ_BF16) : kind;
  const uint64_t aBytes = scratchBytes(kM * kK * types.bytes);
  const uint64_t bBytes = scratchBytes(kN * kK * types.bytes);
  const uint64_t cBytes = kM * kN * types.resultBytes;
  std::vector<char> host(aBytes + bBytes), result(cBytes);
  for (int64_t i = 0; i < kM * kK; i++)
    putValue(host.data() + i * types.bytes, dtype, testValue(i));
  for (int64_t i = 0; i < kN * kK; i++)
    putValue(host.data() + aBytes + i * types.bytes, dtype, testValue(i + 3));
  Scratch scratch(queue);
  if (scratch.allocate(aBytes + bBytes + cBytes, "gemm", err) != AQ_OK) return err->code;
  Gemm g;
  g.m = kM, g.n = kN, g.k = kK;
  g.dtype = dtype;
  if (kind == kShortResult) g.resultDtype = AQ_BF16;
  g.a = {scratch.at<char>(), kK, 0, false};
  g.b = {scratch.at<char>(aBytes), kK, 0, true};
  g.c = scratch.at<char>(aBytes + bBytes);
  g.ldc = kN;
  if (hasFactor) g.factor = queue->blas->constant(types, 2);
  CUDA_CHECK(cudaMemcpyAsync(scratch.at<char>(), host.data(), host.size(), cudaMemcpyHostToDevice,
                             queue->stream));
  if (!enqueue(queue, g)) return AQ_OK;
  CUDA_CHECK(cudaMemcpyAsync(result.data(), g.c, cBytes, cudaMemcpyDeviceToHost, queue->stream));
  CUDA_CHECK(cudaStreamSynchronize(queue->stream));
  for (int64_t i = 0; i < kM; i++) {
    for (int64_t j = 0; j < kN; j++) {
      int64_t sum = 0;
      for (int64_t k = 0; k < kK; k++) sum += testValue(i * kK + k) * testValue(j * kK + k + 3);
      if (hasFactor) sum *= 2;
      const char* const at = result.data() + (i * kN + j) * types.resultBytes;
      if (getValue(at, types.result) != storedSum(sum, types.result)) return AQ_OK;
    }
  }
  *good = true;
  return AQ_OK;
}

// Makes queue->blas, with no library in it where none can be used.
int32_t openBlas(aq_queue* queue, aq_error* err) {
  if (queue->blas) return AQ_OK;
  Blas* const blas = new (std::nothrow) Blas;
  if (!blas) return fail(err, AQ_OOM, "cuda: out of host memory for the products' plans.");
  queue->blas = blas;
  const Library* const library = openLibrary();
  if (!library || library->create(&blas->handle) != kSuccess) return AQ_OK;
  blas->library = library;
  cudaError_t status = cudaMallocFromPoolAsync(
      &blas->workspace, kWorkspaceBytes + sizeof kConstants, queue->pool, queue->stream);
  if (status == cudaSuccess) {
    status = cudaMemcpyAsync(static_cast<char*>(blas->workspace) + kWorkspaceBytes, &kConstants,
                             sizeof kConstants, cudaMemcpyHostToDevice, queue->stream);
  }
  if (status == cudaSuccess) return AQ_OK;
  closeBlas(queue);
  return failCuda(err, status, "allocating the workspace of cuBLASLt");
}

// Whether the library is there and right for this kind, with a factor or without. While a graph is being captured nothing can
// be waited for, and an unchecked kind is taken on trust.
int32_t trusts(aq_queue* queue, int32_t kind, bool hasFactor, bool* trusted, aq_error* err) {
  *trusted = false;
  if (openBlas(queue, err) != AQ_OK) return err->code;
  if (!queue->blas->library) return AQ_OK;
  Verdict& verdict = queue->blas->verdicts[size_t(kind)][hasFactor];
  if (verdict == Verdict::kUnknown) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(queue->stream, &capture));
    if (capture != cudaStreamCaptureStatusNone) {
      *trusted = true;
      return AQ_OK;
    }
    bool good = false;
    if (selfCheck(queue, kind, hasFactor, &good, err) != AQ_OK) return err->code;
    verdict = good ? Verdict::kGood : Verdict::kBad;
  }
  *trusted = verdict == Verdict::kGood;
  return AQ_OK;
}

}  // namespace

int32_t blasProduct(aq_queue* queue, const Gemm& product, bool* done, aq_error* err) {
  *done = false;
  // BF16 alone has a BF16 result there, and no f32 bias with it.
  if (product.hasShortResult() && (product.dtype != AQ_BF16 || product.bias)) return AQ_OK;
  // With a factor, alpha and beta are in device memory: beta as one of the constants there.
  const bool hasFactor = product.factor != nullptr;
  if (hasFactor && (product.alpha != 1 || (product.beta != 0 && product.beta != 1))) return AQ_OK;
  bool trusted = false;
  if (trusts(queue, kindOf(product), hasFactor, &trusted, err) != AQ_OK) return err->code;
  // The library reads a bias in vectors and does not say how long.
  const bool isAligned = reinterpret_cast<uintptr_t>(product.bias) % 16 == 0;
  if (trusted && isAligned && product.k > 0 && product.batch <= INT32_MAX)
    *done = enqueue(queue, product);
  return AQ_OK;
}

bool hasBlas(aq_queue* queue) {
  aq_error ignored;
  bool trusted = false;
  return trusts(queue, AQ_F32, false, &trusted, &ignored) == AQ_OK && trusted;
}

void closeBlas(aq_queue* queue) {
  Blas* const blas = queue->blas;
  if (!blas) return;
  for (const auto& known : blas->plans) blas->destroy(known.second);
  if (blas->workspace) cudaFreeAsync(blas->workspace, queue->stream);
  if (blas->handle) openLibrary()->destroy(blas->handle);
  (void)cudaGetLastError();
  delete blas;
  queue->blas = nullptr;
}

}  // namespace aq::cuda
