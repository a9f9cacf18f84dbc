// fault.cu: faults of kernels as sentences.
#include "native/cuda/fault.h"

#include "native/cuda/check.h"

namespace aq::cuda {

int32_t takeFault(Fault* fault, aq_error* err) {
  const Fault seen = *fault;
  if (seen.kind == int32_t(FaultKind::kNone)) return AQ_OK;
  *fault = {};
  const auto index = static_cast<long long>(seen.index);
  const auto value = static_cast<long long>(seen.value);
  switch (FaultKind(seen.kind)) {
    case FaultKind::kSingular:
      return fail(err, AQ_NUMERIC,
                  "lu_inverse: matrix %lld of the batch is singular or holds values that are not "
                  "finite.",
                  index);
    case FaultKind::kTokenId:
      return fail(err, AQ_ARG, "token %lld has the id %lld, which is outside the table.", index,
                  value);
    case FaultKind::kNotPositive:
      return fail(
          err, AQ_NUMERIC,
          "gptq: the damped h is not positive definite at column %lld; raise the damping or "
          "use more calibration text.",
          index);
    case FaultKind::kCachePlace:
      return fail(err, AQ_ARG,
                  "cached_attention: token %lld is at position %d of slot %d, which the caches do "
                  "not have; make them larger, or the text shorter",
                  index, int32_t(value), int32_t(value >> 32));
    default:
      return fail(err, AQ_INTERNAL, "cuda: a kernel reported the unknown fault %d.", seen.kind);
  }
}

}  // namespace aq::cuda
