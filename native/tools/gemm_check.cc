// gemm_check.cc: checks and times the CPU kernels that carry the run time, without Node: products,
// attention, inverse, at every SIMD level that this processor has. Each kernel is compared with
// plain loops in double, and the bits with one and with several threads must be equal.
//
//   g++ -std=gnu++20 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -I.
//     native/tools/gemm_check.cc native/cpu/parallel.cc -ldl -pthread -o gemm_check
//   ./gemm_check                                  correctness
//   ./gemm_check time [libopenblas.so [level]]    GFLOP/s, beside OpenBLAS's cblas_sgemm if named
//
// For the latter set OPENBLAS_NUM_THREADS, and OPENBLAS_CORETYPE on processors it does not know.
#if !defined(AQ_LEVEL)
#include "native/cpu/prelude.h"

#include <dlfcn.h>

#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

// The kernel headers, once per level: this file includes itself with AQ_LEVEL defined.
#define AQ_CHECK_SELF "native/tools/gemm_check.cc"
#define AQ_LEVEL plain
#define AQ_LEVEL_PLAIN 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_PLAIN
#undef AQ_UNROLL
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define AQ_LEVEL avx2
#define AQ_LEVEL_AVX2 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_AVX2
#undef AQ_UNROLL
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#define AQ_LEVEL avx512
#define AQ_LEVEL_AVX512 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_AVX512
#undef AQ_UNROLL
#pragma GCC pop_options
#elif defined(__aarch64__)
#define AQ_LEVEL neon
#define AQ_LEVEL_NEON 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_NEON
#undef AQ_UNROLL
#endif

namespace {

using namespace aq::cpu;
using std::vector;

// In this order: each uses the one before.
#include "native/tools/check_util.h"

#include "native/tools/check_cases.h"

#include "native/tools/check_time.h"

}  // namespace

int main(int argc, char** argv) {
  const bool timing = argc > 1 && std::strcmp(argv[1], "time") == 0;
  Sgemm sgemm = nullptr;
  if (timing && argc > 2) {
    void* library = dlopen(argv[2], RTLD_NOW);
    if (library) sgemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
    if (!sgemm) std::printf("%s: no cblas_sgemm: %s\n", argv[2], dlerror());
  }
  for (const Level& level : kLevels) {
    if (!level.usable || (argc > 3 && std::strcmp(argv[3], level.name) != 0)) continue;
    if (timing) {
      timeProducts(level, sgemm);
      timeAttention(level);
      timeInverse(level);
    } else {
      checkLevel<float>(level);
      checkLevel<double>(level);
    }
  }
  if (!timing) std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}

#else
// The ops that no check calls.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
namespace aq::cpu::AQ_LEVEL {
#include "native/cpu/levels/products.inc"
}  // namespace aq::cpu::AQ_LEVEL
#pragma GCC diagnostic pop
#endif
