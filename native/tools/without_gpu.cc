// without_gpu.cc: what kernel_check takes from CUDA, for one that is built without it: `kernel_check
// --device cpu` then tries every case on the CPU.
#include "native/abi/backend.h"
#include "native/core/error.h"
#include "native/tools/kernel_time.h"

namespace aq::cuda {

const aq_backend* backend() {
  raise(AQ_UNSUPPORTED,
        "this kernel_check is built without CUDA: add --device cpu, or build it with "
        "npm run build:kernel-check");
}

}  // namespace aq::cuda

namespace aq::tools {

Timing timeKernel(const char*, const std::shared_ptr<Queue>&, const Sample&) {
  raise(AQ_UNSUPPORTED, "kernels are timed on a GPU; npm run bench times those of the CPU");
}

double copyRate(const std::shared_ptr<Queue>&) {
  raise(AQ_UNSUPPORTED, "kernels are timed on a GPU; npm run bench times those of the CPU");
}

}  // namespace aq::tools
