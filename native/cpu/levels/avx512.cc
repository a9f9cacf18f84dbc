// avx512: 512-bit vectors (Skylake-X, Zen 4 and later).
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// False alarms about the undefined registers in GCC 12's own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "native/cpu/prelude.h"
#if defined(__clang__)
#pragma clang attribute push(                                                         \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#endif
#define AQ_LEVEL avx512
#define AQ_LEVEL_AVX512 1
#include "native/cpu/levels/level.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
