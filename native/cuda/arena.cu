// arena.cu: memory of a recorded graph (see arena.h).
#include "native/cuda/arena.h"

#include <algorithm>
#include <iterator>
#include <new>

namespace aq::cuda {

namespace {
// What is asked of the pool at once: a small model's step fits into one chunk.
constexpr uint64_t kChunkBytes = uint64_t(32) << 20;
}  // namespace

// One free block of a new chunk, of `bytes` or more.
cudaError_t Arena::grow(uint64_t bytes, cudaMemPool_t pool, cudaStream_t stream,
                        Blocks::iterator* grown) {
  void* data = nullptr;
  uint64_t size = std::max(bytes, kChunkBytes);
  chunks_.reserve(chunks_.size() + 1);
  cudaError_t status = cudaMallocFromPoolAsync(&data, size, pool, stream);
  if (status == cudaErrorMemoryAllocation && size > bytes) {
    (void)cudaGetLastError();
    size = bytes;
    status = cudaMallocFromPoolAsync(&data, size, pool, stream);
  }
  // The graph's queue does not wait for this stream, so the host does.
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  if (status != cudaSuccess) return status;
  chunks_.push_back(data);
  bytes_ += size;
  *grown = blocks_.emplace(static_cast<char*>(data), Block{size, chunks_.size() - 1, true}).first;
  return cudaSuccess;
}

cudaError_t Arena::take(uint64_t bytes, cudaMemPool_t pool, cudaStream_t stream, void** data) try {
  // The smallest block that fits; recording is done once, so a search through all is good enough.
  auto best = blocks_.end();
  for (auto at = blocks_.begin(); at != blocks_.end(); at++) {
    const Block& block = at->second;
    if (!block.isFree || block.bytes < bytes) continue;
    if (best == blocks_.end() || block.bytes < best->second.bytes) best = at;
  }
  if (best == blocks_.end()) {
    const cudaError_t status = grow(bytes, pool, stream, &best);
    if (status != cudaSuccess) return status;
  }
  Block& block = best->second;
  if (block.bytes > bytes) {
    blocks_.emplace(best->first + bytes, Block{block.bytes - bytes, block.chunk, true});
    block.bytes = bytes;
  }
  block.isFree = false;
  held_++;
  *data = best->first;
  return cudaSuccess;
} catch (const std::bad_alloc&) {
  return cudaErrorMemoryAllocation;
}

bool Arena::give(void* data) {
  auto at = blocks_.find(static_cast<char*>(data));
  if (at == blocks_.end() || at->second.isFree) return false;
  at->second.isFree = true;
  held_--;
  const auto join = [this](Blocks::iterator left, Blocks::iterator right) {
    if (!left->second.isFree || !right->second.isFree ||
        left->second.chunk != right->second.chunk) {
      return false;
    }
    left->second.bytes += right->second.bytes;
    blocks_.erase(right);
    return true;
  };
  if (const auto next = std::next(at); next != blocks_.end()) join(at, next);
  if (at != blocks_.begin()) join(std::prev(at), at);
  return true;
}

void Arena::free(cudaStream_t stream) {
  for (void* data : chunks_) cudaFreeAsync(data, stream);
  (void)cudaGetLastError();
  chunks_.clear();
  blocks_.clear();
  bytes_ = 0;
}

}  // namespace aq::cuda
