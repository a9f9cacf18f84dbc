// reading.h: copies to the host that the queue's thread does not wait for (read_start and read_finish
// of backend.h). Each has pinned memory, which the copy needs to be asynchronous, and an event behind
// it. Both take the driver longer to make than a small model has for a step, so that small ones are
// kept for the next reading.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <vector>

#include "native/abi/backend.h"

struct aq_reading {
  aq_queue* queue;
  void* host;  // pinned
  cudaEvent_t event;
  uint64_t capacity;
  uint64_t bytes;
};

namespace aq::cuda {

// Readings of a queue that are over. Readings end on other threads than the queue's.
class SpareReadings {
 public:
  // One of at least `bytes`, or null.
  aq_reading* take(uint64_t bytes);
  // Keeps it, or frees it where it is large.
  void give(aq_reading* reading);
  void clear();

 private:
  std::mutex mutex_;
  std::vector<aq_reading*> readings_;
};

int32_t startReading(aq_queue* queue, const void* src, uint64_t bytes, aq_reading** reading,
                     aq_error* err);
int32_t finishReading(aq_reading* reading, void* dst, aq_error* err);

}  // namespace aq::cuda
