// avx2: 256-bit vectors with FMA (Haswell, Zen and later).
#if defined(__x86_64__)
#include "native/cpu/prelude.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#define AQ_LEVEL avx2
#define AQ_LEVEL_AVX2 1
#include "native/cpu/levels/level.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
