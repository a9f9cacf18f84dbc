// reading.cu: see reading.h.
#include "native/cuda/reading.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "native/cuda/check.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {
// What is kept: losses, flags and margins fit; whole tensors do not, and are read once.
constexpr uint64_t kKept = 16 * 1024;

void destroy(aq_reading* reading) {
  if (reading->event) cudaEventDestroy(reading->event);
  if (reading->host) cudaFreeHost(reading->host);
  (void)cudaGetLastError();
  delete reading;
}

aq_reading* create(aq_queue* queue, uint64_t bytes, aq_error* err) {
  const uint64_t capacity = std::max(bytes, kKept);
  auto* reading = new (std::nothrow) aq_reading{queue, nullptr, nullptr, capacity, 0};
  if (!reading) {
    fail(err, AQ_OOM, "cuda: out of host memory for reading a tensor.");
    return nullptr;
  }
  cudaError_t status = cudaMallocHost(&reading->host, capacity);
  if (status == cudaSuccess) {
    status = cudaEventCreateWithFlags(&reading->event, cudaEventDisableTiming);
  }
  if (status == cudaSuccess) return reading;
  failCuda(err, status, "making room on the host for reading a tensor");
  destroy(reading);
  return nullptr;
}
}  // namespace

aq_reading* SpareReadings::take(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bytes > kKept || readings_.empty()) return nullptr;
  aq_reading* const reading = readings_.back();
  readings_.pop_back();
  return reading;
}

void SpareReadings::give(aq_reading* reading) {
  if (reading->capacity > kKept) return destroy(reading);
  const std::lock_guard<std::mutex> lock(mutex_);
  readings_.push_back(reading);
}

void SpareReadings::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (aq_reading* reading : readings_) destroy(reading);
  readings_.clear();
}

int32_t startReading(aq_queue* queue, const void* src, uint64_t bytes, aq_reading** result,
                     aq_error* err) {
  if (refuseRecorded(queue, "a copy to the host", err) != AQ_OK) return err->code;
  CUDA_CHECK(cudaSetDevice(queue->device));
  aq_reading* reading = queue->readings.take(bytes);
  if (!reading) reading = create(queue, bytes, err);
  if (!reading) return err->code;
  reading->bytes = bytes;
  cudaError_t status =
      cudaMemcpyAsync(reading->host, src, bytes, cudaMemcpyDeviceToHost, queue->stream);
  if (status == cudaSuccess) status = cudaEventRecord(reading->event, queue->stream);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    destroy(reading);
    return failCuda(err, status, "reading a tensor");
  }
  *result = reading;
  return AQ_OK;
}

int32_t finishReading(aq_reading* reading, void* dst, aq_error* err) {
  aq_queue* const queue = reading->queue;
  cudaError_t status = cudaSetDevice(queue->device);
  if (status == cudaSuccess) status = cudaEventSynchronize(reading->event);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    destroy(reading);
    return failCuda(err, status, "waiting for what is read");
  }
  if (dst) std::memcpy(dst, reading->host, reading->bytes);
  queue->readings.give(reading);
  return takeFault(queue->fault, err);
}

}  // namespace aq::cuda
