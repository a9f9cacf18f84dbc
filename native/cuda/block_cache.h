// block_cache.h: freed blocks of device memory that a queue hands out again without asking the driver.
//
// A training step asks for the same few hundred sizes over and over, and small models spend more time
// in the driver's allocator than on the GPU. Work on a queue runs in order, so a block may be handed
// out as soon as it is released. Blocks of one size only serve that size; large ones, where the
// driver's time does not matter and the waste would, are not kept.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <unordered_map>
#include <vector>

struct aq_queue;

namespace aq::cuda {

class BlockCache {
 public:
  // A kept block of `bytes`, or null.
  void* take(uint64_t bytes);
  // Whether the block was kept; if not, it is the caller's to free.
  bool keep(void* data, uint64_t bytes);
  // Gives everything back to the driver, in the stream's order.
  void flush(cudaStream_t stream);

 private:
  std::unordered_map<uint64_t, std::vector<void*>> blocks_;  // by size
  uint64_t bytes_ = 0;
};

// Device memory of a queue, from its cache or the device's pool, or from the recording that runs
// (graph.h). Under memory pressure everything that is kept is given back before
// cudaErrorMemoryAllocation is returned, for which the queue is waited.
cudaError_t takeMemory(aq_queue* queue, uint64_t bytes, void** data);
// True where the block is the queue's again; false where a recording has it.
bool giveMemory(aq_queue* queue, void* data, uint64_t bytes);

}  // namespace aq::cuda
