// block_cache.cu: memory of a queue (see block_cache.h).
#include "native/cuda/block_cache.h"

#include <new>

#include "native/cuda/graph.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

// Above this the driver's few microseconds are small beside what is done with a block. Chosen for
// llama-gqa-4m, whose step has 170 calls; other bounds were not measured.
constexpr uint64_t kLargestKept = uint64_t(16) << 20;
constexpr uint64_t kMostKept = uint64_t(512) << 20;

// Sizes that differ by a few elements share blocks; an empty tensor has an address too, since a null
// pointer means an absent one.
uint64_t blockBytes(uint64_t bytes) { return bytes ? (bytes + 511) / 512 * 512 : 512; }

}  // namespace

void* BlockCache::take(uint64_t bytes) {
  const auto found = blocks_.find(bytes);
  if (found == blocks_.end() || found->second.empty()) return nullptr;
  void* const data = found->second.back();
  found->second.pop_back();
  bytes_ -= bytes;
  return data;
}

bool BlockCache::keep(void* data, uint64_t bytes) {
  if (bytes > kLargestKept || bytes_ + bytes > kMostKept) return false;
  try {
    blocks_[bytes].push_back(data);
  } catch (const std::bad_alloc&) {
    return false;
  }
  bytes_ += bytes;
  return true;
}

void BlockCache::flush(cudaStream_t stream) {
  for (const auto& [size, list] : blocks_) {
    for (void* data : list) cudaFreeAsync(data, stream);
  }
  (void)cudaGetLastError();
  blocks_.clear();
  bytes_ = 0;
}

cudaError_t takeMemory(aq_queue* queue, uint64_t bytes, void** data) {
  const uint64_t size = blockBytes(bytes);
  if (queue->recorder.current) return takeRecorded(queue, size, data);
  *data = queue->cache.take(size);
  if (*data) return cudaSuccess;
  cudaError_t status = cudaMallocFromPoolAsync(data, size, queue->pool, queue->stream);
  if (status == cudaErrorMemoryAllocation) {
    // What is kept may be in pieces that do not fit, or wait for work that still runs.
    (void)cudaGetLastError();
    queue->cache.flush(queue->stream);
    status = cudaDeviceSynchronize();
    if (status == cudaSuccess) status = cudaMemPoolTrimTo(queue->pool, 0);
    if (status != cudaSuccess) return status;
    status = cudaMallocFromPoolAsync(data, size, queue->pool, queue->stream);
  }
  if (status != cudaSuccess) *data = nullptr;
  return status;
}

bool giveMemory(aq_queue* queue, void* data, uint64_t bytes) {
  if (!data || giveRecorded(queue, data, bytes)) return false;
  if (queue->cache.keep(data, blockBytes(bytes))) return true;
  cudaFreeAsync(data, queue->stream);
  (void)cudaGetLastError();
  return true;
}

}  // namespace aq::cuda
