// graph.h: recording a queue's work as a CUDA graph, and running it again. A step of a small model is
// some two hundred launches of a few microseconds each, and its calls from JavaScript take longer
// than that; a graph takes one call.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "native/abi/backend.h"
#include "native/cuda/arena.h"

namespace aq::cuda {

// What a queue knows of its recordings.
struct Recorder {
  aq_graph* current = nullptr;
  std::atomic<std::thread::id> thread{};  // that records; none: no recording
  // Held while recording, and by whoever waits for the queue: a stream that is being recorded cannot
  // be waited for.
  std::mutex waiting;
  std::vector<std::unique_ptr<Arena>> arenas;  // of this queue's graphs, and of what they left

  bool isRecording() const { return thread.load() == std::this_thread::get_id(); }
};

// The functions of the backend's table (backend.h).
int32_t captureBegin(aq_queue* queue, aq_error* err);
int32_t captureEnd(aq_queue* queue, aq_graph** graph, aq_error* err);
int32_t graphLaunch(aq_queue* queue, aq_graph* graph, aq_error* err);
void graphFree(aq_queue* queue, aq_graph* graph);

// Memory of a recording that runs.
cudaError_t takeRecorded(aq_queue* queue, uint64_t bytes, void** data);
// False for a block that is the queue's to take back: it is not of a recording, nor could one that
// runs have used it.
bool giveRecorded(aq_queue* queue, void* data, uint64_t bytes);

// AQ_UNSUPPORTED while the queue records; `what` is what cannot be recorded.
int32_t refuseRecorded(const aq_queue* queue, const char* what, aq_error* err);

}  // namespace aq::cuda
