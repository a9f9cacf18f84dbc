// features.h: which vector instructions this x86-64 processor has and its operating system keeps
// state for. Asked of the processor itself: compilers' own __builtin_cpu_supports knows f16c only in
// late versions of clang, and on Windows needs a library that clang-cl does not link.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>

namespace aq::cpu {

struct Features {
  bool avx2;    // with fma, f16c and bmi2
  bool avx512;  // f, bw, dq and vl, and all of avx2
  bool vnni;    // avx512 with products of bytes
};

// The kinds of registers that the operating system saves: bits 1, 2: xmm, ymm; 5 to 7: those of AVX-512.
inline uint64_t savedRegisters() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

inline Features readFeatures() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return {};
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr uint32_t kBasic = kFma | kOsxsave | kAvx | kF16c;
  if ((ecx & kBasic) != kBasic) return {};
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return {};
  constexpr uint32_t kAvx2 = 1u << 5, kBmi2 = 1u << 8;
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  const auto has = [ebx](uint32_t bits) { return (ebx & bits) == bits; };
  const uint64_t saved = savedRegisters();
  const bool avx2 = has(kAvx2 | kBmi2) && (saved & 0x06) == 0x06;
  const bool avx512 = avx2 && has(kF | kDq | kBw | kVl) && (saved & 0xe6) == 0xe6;
  constexpr uint32_t kVnni = 1u << 11;
  return {avx2, avx512, avx512 && (ecx & kVnni) != 0};
}

}  // namespace aq::cpu
#endif
