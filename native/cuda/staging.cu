// staging.cu: staged copies (see staging.h).
#include "native/cuda/staging.h"

#include <algorithm>
#include <new>

#include "native/cuda/check.h"
#include "native/cuda/copy_threads.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr uint64_t kSlotBytes = uint64_t(4) << 20;
// Smaller copies go to the driver directly. It has pinned buffers too: to the device they serve up
// to some megabytes as well as these do, from it they are half as fast at any size below 16 MB.
constexpr uint64_t kLeastToDevice = uint64_t(4) << 20;
constexpr uint64_t kLeastToHost = uint64_t(64) << 10;

// Several pieces a copy, so that transfer and copy overlap, and none so small that the 10 us that
// each takes besides count for much.
uint64_t pieceBytes(uint64_t bytes) {
  constexpr uint64_t kLeast = uint64_t(256) << 10;
  return std::clamp(bytes / 4 / kLeast * kLeast, kLeast, kSlotBytes);
}

bool open(Staging& staging) {
  if (staging.isRefused) return false;
  if (staging.threads) return true;
  staging.threads = new (std::nothrow) CopyThreads;
  for (Staging::Slot& slot : staging.slots) {
    if (staging.threads && cudaMallocHost(&slot.data, kSlotBytes) == cudaSuccess &&
        cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming) == cudaSuccess) {
      continue;
    }
    (void)cudaGetLastError();
    closeStaging(staging);
    staging.isRefused = true;
    return false;
  }
  return true;
}

}  // namespace

int32_t copyToDevice(aq_queue* queue, void* device, const void* host, uint64_t bytes,
                     aq_error* err) {
  if (bytes < kLeastToDevice || !open(queue->staging)) {
    CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, queue->stream));
    return AQ_OK;
  }
  const uint64_t most = pieceBytes(bytes);
  for (uint64_t at = 0, piece = 0; at < bytes; at += most, piece++) {
    const Staging::Slot& slot = queue->staging.slots[piece % Staging::kSlots];
    const uint64_t count = std::min(most, bytes - at);
    CUDA_CHECK(cudaEventSynchronize(slot.done));
    queue->staging.threads->copy(slot.data, static_cast<const char*>(host) + at, count);
    CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(device) + at, slot.data, count,
                               cudaMemcpyHostToDevice, queue->stream));
    CUDA_CHECK(cudaEventRecord(slot.done, queue->stream));
  }
  return AQ_OK;
}

int32_t copyToHost(aq_queue* queue, void* host, const void* device, uint64_t bytes, aq_error* err) {
  if (bytes < kLeastToHost || !open(queue->staging)) {
    CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, queue->stream));
    CUDA_CHECK(cudaStreamSynchronize(queue->stream));
    return AQ_OK;
  }
  const auto slotOf = [queue](uint64_t piece) -> const Staging::Slot& {
    return queue->staging.slots[piece % Staging::kSlots];
  };
  const uint64_t most = pieceBytes(bytes), pieces = (bytes + most - 1) / most;
  const auto countOf = [=](uint64_t piece) { return std::min(most, bytes - piece * most); };
  // Piece i is on its way while piece i - 1 is taken out.
  for (uint64_t piece = 0; piece <= pieces; piece++) {
    if (piece < pieces) {
      const Staging::Slot& slot = slotOf(piece);
      CUDA_CHECK(cudaMemcpyAsync(slot.data, static_cast<const char*>(device) + piece * most,
                                 countOf(piece), cudaMemcpyDeviceToHost, queue->stream));
      CUDA_CHECK(cudaEventRecord(slot.done, queue->stream));
    }
    if (piece == 0) continue;
    const Staging::Slot& slot = slotOf(piece - 1);
    CUDA_CHECK(cudaEventSynchronize(slot.done));
    queue->staging.threads->copy(static_cast<char*>(host) + (piece - 1) * most, slot.data,
                                 countOf(piece - 1));
  }
  return AQ_OK;
}

void closeStaging(Staging& staging) {
  for (Staging::Slot& slot : staging.slots) {
    if (slot.done) cudaEventDestroy(slot.done);
    if (slot.data) cudaFreeHost(slot.data);
    slot = {};
  }
  delete staging.threads;
  staging.threads = nullptr;
  (void)cudaGetLastError();
}

}  // namespace aq::cuda
