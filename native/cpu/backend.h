// backend.h: the CPU backend as the engine sees it.
#pragma once
#include "native/abi/backend.h"

// The table of the CPU backend; the same pointer at every call, valid for the process's lifetime.
const aq_backend* aq_cpu_backend() noexcept;

namespace aq::cpu {

// The SIMD level in use: "plain", "avx2", "avx512" or "neon".
const char* levelName() noexcept;

}  // namespace aq::cpu
