// arena.h: the device memory of one recorded graph. A graph runs at the addresses it was recorded
// with, so nothing else may get them while it exists; within the recording they are reused as the
// recorded work releases them, which is in order.
//
// Blocks that are still held after the recording (a step's result) keep their place and their value
// from one run to the next. The memory goes back to the device's pool when the graph is gone and the
// last of them is released, in whichever order.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <vector>

namespace aq::cuda {

class Arena {
 public:
  // `stream` is one that is not being recorded: memory is asked for there.
  cudaError_t take(uint64_t bytes, cudaMemPool_t pool, cudaStream_t stream, void** data);
  // False where the block is not of this arena.
  bool give(void* data);
  // Gives all memory back to the pool, in the order of the stream.
  void free(cudaStream_t stream);

  uint64_t bytes() const { return bytes_; }  // taken from the pool
  bool isEmpty() const { return held_ == 0; }

  bool isNeeded = true;  // by its graph

 private:
  struct Block {
    uint64_t bytes;
    size_t chunk;  // which of chunks_; blocks of two chunks are never joined
    bool isFree;
  };
  using Blocks = std::map<char*, Block>;

  cudaError_t grow(uint64_t bytes, cudaMemPool_t pool, cudaStream_t stream,
                   Blocks::iterator* grown);

  Blocks blocks_;  // every byte of every chunk, by address
  std::vector<void*> chunks_;
  uint64_t bytes_ = 0;
  int64_t held_ = 0;  // blocks that are taken
};

}  // namespace aq::cuda
