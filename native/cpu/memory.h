// memory.h: the memory of CPU tensors: 64-byte-aligned blocks, reused by size class so that a
// training step, which allocates the same sizes again and again, does not page-fault.
//
// A block belongs to whoever allocated it until it is released with the size it was asked for.
// All functions may be called from any thread.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"

namespace aq::cpu {

// AQ_OOM where neither the system nor the cache has room, or AQ_MEMORY_LIMIT would be exceeded.
int32_t allocateBlock(uint64_t bytes, void** data, aq_error* err) noexcept;
void releaseBlock(void* data, uint64_t bytes) noexcept;

aq_memory_info memoryInfo() noexcept;

// AQ_ARG if the environment variable AQ_MEMORY_LIMIT is set to something that is no byte count.
int32_t checkMemoryLimit(aq_error* err) noexcept;

}  // namespace aq::cpu
