// prelude.h: everything a level file (native/cpu/levels/*.cc) needs before it switches the compiler
// to its instruction set.
//
// All CPU kernels live in native/cpu/kernels/*.h and are compiled once per SIMD level, each time in
// a namespace of its own (aq::cpu::AQ_LEVEL), so that run-time dispatch is the choice of one table
// of kernels (backend.cc). Standard headers must be included here and not by the kernels: a standard
// template compiled under "avx512" could be picked by the linker for every level, and then crash on
// an older processor.
#pragma once
#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "native/abi/backend.h"
#include "native/abi/params.h"
#include "native/cpu/features.h"
#include "native/cpu/half.h"
#include "native/cpu/kernel_util.h"
#include "native/cpu/parallel.h"
