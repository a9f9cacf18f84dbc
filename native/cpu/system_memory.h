// system_memory.h: memory from the operating system: for the pool of blocks (memory.cc) and the
// threads' scratch (parallel.cc), and how much of it the machine has.
//
// A program under AddressSanitizer (npm run test:asan) should see every byte past the end of what was
// asked for. There kSanitized is true: the pool then neither rounds up nor caches, and scratch beyond
// the size of the last request is poisoned.
#pragma once
#include <cstdint>
#include <cstdlib>

#if defined(_WIN32)
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>

#include <malloc.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace aq::cpu {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// `size` bytes, or null; `alignment` is a power of two from 8 on.
inline void* alignedAllocate(uint64_t alignment, uint64_t size) noexcept {
#if defined(_WIN32)
  return _aligned_malloc(size, alignment);
#else
  void* data = nullptr;
  return posix_memalign(&data, alignment, size) == 0 ? data : nullptr;
#endif
}

inline void alignedFree(void* data) noexcept {
#if defined(_WIN32)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

// Pages of their own, which go back to the system as soon as they are released. The heap of Windows
// treats blocks of this size so by itself.
inline void* mapPages(uint64_t size) noexcept {
#if defined(_WIN32)
  return alignedAllocate(4096, size);
#else
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
#endif
}

inline void unmapPages(void* data, [[maybe_unused]] uint64_t size) noexcept {
#if defined(_WIN32)
  alignedFree(data);
#else
  munmap(data, size);
#endif
}

// Asks for huge pages where the system has them.
inline void preferHugePages([[maybe_unused]] void* data, [[maybe_unused]] uint64_t size) noexcept {
#if defined(__linux__)
  madvise(data, size, MADV_HUGEPAGE);
#endif
}

// Bytes of memory that the machine has, or 0.
inline uint64_t machineMemory() noexcept {
#if defined(_WIN32)
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? status.ullTotalPhys : 0;
#else
  const long pages = sysconf(_SC_PHYS_PAGES), pageSize = sysconf(_SC_PAGESIZE);
  return pages > 0 && pageSize > 0 ? uint64_t(pages) * uint64_t(pageSize) : 0;
#endif
}

// Of `capacity` bytes only the first `used` may be touched from now on; of consequence only under
// AddressSanitizer.
inline void limitUse([[maybe_unused]] void* data, [[maybe_unused]] uint64_t used,
                     [[maybe_unused]] uint64_t capacity) noexcept {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(data, used);
  __asan_poison_memory_region(static_cast<char*>(data) + used, capacity - used);
#endif
}

}  // namespace aq::cpu
