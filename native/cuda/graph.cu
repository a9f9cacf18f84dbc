// graph.cu: CUDA graphs of a queue's work (see graph.h).
//
// Mode      capture is "relaxed": while the queue's stream records, the same thread may ask the
//           driver for memory on another stream, and other queues are not concerned at all.
// Memory    see arena.h; a block that was there before and is released while recording may be read
//           by what was recorded, so the graph holds it.
// Products  cuBLASLt is opened before recording, as its self-check waits; its workspace is the
//           queue's, in whose order graphs run too.
// Faults    kernels of a graph write to the queue's fault word like any others.
#include "native/cuda/graph.h"

#include <new>

#include "native/cuda/check.h"
#include "native/cuda/device_state.h"
#include "native/cuda/gemm.h"
#include "native/cuda/queue.h"

struct aq_graph {
  struct Held {
    void* data;
    uint64_t bytes;
  };
  cudaGraphExec_t exec = nullptr;
  aq::cuda::Arena* arena = nullptr;
  cudaStream_t memory = nullptr;  // while recording: where the arena's memory is asked for
  std::vector<Held> held;
};

namespace aq::cuda {

namespace {

DeviceState* deviceOf(const aq_queue* queue) {
  aq_error ignored;
  return stateOf(queue->device, &ignored);
}

// Gives back the memory of graphs that are gone and whose blocks are all released.
void collect(aq_queue* queue) {
  Recorder& recorder = queue->recorder;
  if (recorder.current) return;  // the stream would record it
  std::erase_if(recorder.arenas, [queue](const std::unique_ptr<Arena>& arena) {
    if (arena->isNeeded || !arena->isEmpty()) return false;
    deviceOf(queue)->countRelease(arena->bytes());
    arena->free(queue->stream);
    return true;
  });
}

// Makes the stream record; what was made on the way is the caller's to forget.
int32_t begin(aq_queue* queue, aq_graph& graph, aq_error* err) {
  CUDA_CHECK(cudaStreamCreateWithFlags(&graph.memory, cudaStreamNonBlocking));
  // Memory that the queue has finished with can serve the recording then.
  queue->cache.flush(queue->stream);
  CUDA_CHECK(cudaStreamSynchronize(queue->stream));
  if (takeFault(queue->fault, err) != AQ_OK) return err->code;
  CUDA_CHECK(cudaStreamBeginCapture(queue->stream, cudaStreamCaptureModeRelaxed));
  return AQ_OK;
}

// Makes the graph ready to run.
int32_t instantiate(aq_queue* queue, aq_graph& graph, cudaGraph_t recorded, aq_error* err) {
  CUDA_CHECK(cudaGraphInstantiate(&graph.exec, recorded, 0));
  CUDA_CHECK(cudaGraphUpload(graph.exec, queue->stream));
  return AQ_OK;
}

}  // namespace

int32_t captureBegin(aq_queue* queue, aq_error* err) try {
  Recorder& recorder = queue->recorder;
  CUDA_CHECK(cudaSetDevice(queue->device));
  if (refuseRecorded(queue, "a recording inside a recording", err) != AQ_OK) return err->code;
  (void)hasBlas(queue);
  auto graph = std::make_unique<aq_graph>();
  recorder.arenas.push_back(std::make_unique<Arena>());
  graph->arena = recorder.arenas.back().get();
  recorder.waiting.lock();
  if (begin(queue, *graph, err) != AQ_OK) {
    recorder.waiting.unlock();
    if (graph->memory) cudaStreamDestroy(graph->memory);
    recorder.arenas.pop_back();
    return err->code;
  }
  recorder.current = graph.release();
  recorder.thread = std::this_thread::get_id();
  return AQ_OK;
} catch (const std::bad_alloc&) {
  return fail(err, AQ_OOM, "cuda: out of host memory for a recording.");
}

int32_t captureEnd(aq_queue* queue, aq_graph** graph, aq_error* err) {
  Recorder& recorder = queue->recorder;
  if (graph) *graph = nullptr;
  if (!recorder.isRecording()) {
    return fail(err, AQ_ARG, "cuda: a recording was ended on device %d, and none had begun.",
                queue->device);
  }
  CUDA_CHECK(cudaSetDevice(queue->device));
  aq_graph* const ended = recorder.current;
  cudaGraph_t recorded = nullptr;
  const cudaError_t status = cudaStreamEndCapture(queue->stream, &recorded);
  recorder.current = nullptr;
  recorder.thread = std::thread::id();
  recorder.waiting.unlock();
  cudaStreamDestroy(ended->memory);
  int32_t code = AQ_OK;
  if (status != cudaSuccess) {
    code = fail(err, AQ_UNSUPPORTED,
                "cuda: this work cannot be recorded: %s (%s). Run it without a recording.",
                cudaGetErrorString(status), cudaGetErrorName(status));
  } else if (graph) {
    code = instantiate(queue, *ended, recorded, err);
  }
  if (recorded) cudaGraphDestroy(recorded);
  if (graph && code == AQ_OK) {
    *graph = ended;
  } else {
    graphFree(queue, ended);
  }
  (void)cudaGetLastError();
  return graph ? code : int32_t(AQ_OK);
}

int32_t graphLaunch(aq_queue* queue, aq_graph* graph, aq_error* err) {
  if (refuseRecorded(queue, "the run of a graph", err) != AQ_OK) return err->code;
  CUDA_CHECK(cudaSetDevice(queue->device));
  CUDA_CHECK(cudaGraphLaunch(graph->exec, queue->stream));
  return AQ_OK;
}

// Errors have nowhere to go here, as in release. A graph that still runs ends before its memory is
// given to anyone: that is done in the stream's order.
void graphFree(aq_queue* queue, aq_graph* graph) {
  if (!graph) return;
  cudaSetDevice(queue->device);
  if (graph->exec) cudaGraphExecDestroy(graph->exec);
  graph->arena->isNeeded = false;
  for (const aq_graph::Held& held : graph->held) {
    if (giveMemory(queue, held.data, held.bytes)) deviceOf(queue)->countRelease(held.bytes);
  }
  delete graph;
  collect(queue);
  (void)cudaGetLastError();
}

cudaError_t takeRecorded(aq_queue* queue, uint64_t bytes, void** data) {
  const aq_graph& graph = *queue->recorder.current;
  const uint64_t before = graph.arena->bytes();
  const cudaError_t status = graph.arena->take(bytes, queue->pool, graph.memory, data);
  deviceOf(queue)->countAlloc(graph.arena->bytes() - before);
  return status;
}

bool giveRecorded(aq_queue* queue, void* data, uint64_t bytes) {
  Recorder& recorder = queue->recorder;
  for (const auto& arena : recorder.arenas) {
    if (!arena->give(data)) continue;
    if (!arena->isNeeded) collect(queue);
    return true;
  }
  if (!recorder.current) return false;
  try {
    recorder.current->held.push_back({data, bytes});
  } catch (const std::bad_alloc&) {
    // The block is lost; that is better than one with two owners.
  }
  return true;
}

int32_t refuseRecorded(const aq_queue* queue, const char* what, aq_error* err) {
  if (!queue->recorder.isRecording()) return AQ_OK;
  return fail(err, AQ_UNSUPPORTED,
              "cuda: %s cannot be recorded: do it before the recording or after it.", what);
}

}  // namespace aq::cuda
