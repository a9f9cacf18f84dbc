// backend.cu: the table of functions that the CUDA backend hands to the engine: devices, queues
// (streams), memory and copies; recordings are in graph.cu. The kernels are in files of their own,
// which kernels.h lists.
//
// Ownership  a queue is the caller's until queue_close; memory belongs to the queue it came from and
//            is released in that queue's order, so that no synchronization is needed to reuse it.
// Copies     to the device return when the host memory may be reused (host memory is pageable), to
//            the host when the bytes are there (staging.cu); between device addresses they are only
//            enqueued.
// Nothing throws; every error is a code and one sentence.
#include <cstring>
#include <new>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device_state.h"
#include "native/cuda/gemm.h"
#include "native/cuda/graph.h"
#include "native/cuda/kernels.h"
#include "native/cuda/passes.h"
#include "native/cuda/queue.h"
#include "native/cuda/reading.h"
#include "native/cuda/staging.h"

namespace aq::cuda {

namespace {

int32_t deviceInfo(int32_t device, aq_device_info* info, aq_error* err) {
  if (!stateOf(device, err)) return err->code;
  cudaDeviceProp props;
  int driver = 0, runtime = 0;
  CUDA_CHECK(cudaGetDeviceProperties(&props, device));
  CUDA_CHECK(cudaDriverGetVersion(&driver));
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  *info = {};
  snprintf(info->name, sizeof info->name, "%.127s", props.name);
  snprintf(info->detail, sizeof info->detail, "compute %d.%d, driver %d.%d, runtime %d.%d",
           props.major, props.minor, driver / 1000, driver % 1000 / 10, runtime / 1000,
           runtime % 1000 / 10);
  info->total_bytes = props.totalGlobalMem;
  return AQ_OK;
}

int32_t queueOpen(int32_t device, aq_queue** queue, aq_error* err) {
  DeviceState* state = stateOf(device, err);
  if (!state) return err->code;
  if (prepareDevice(device, *state, err) != AQ_OK) return err->code;
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Fault* fault = nullptr;
  aq_queue* opened = nullptr;
  PassRun* passes = nullptr;
  int multiprocessors = 0, major = 0, minor = 0;
  uint32_t* ticket = nullptr;
  cudaError_t status = cudaMallocHost(&fault, sizeof(Fault));
  if (status == cudaSuccess) status = cudaMalloc(&ticket, sizeof *ticket);
  if (status == cudaSuccess) status = cudaMemsetAsync(ticket, 0, sizeof *ticket, stream);
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(value, attribute, device);
  };
  ask(&multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  if (status == cudaSuccess) {
    *fault = {};
    opened = new (std::nothrow) aq_queue;
    passes = new (std::nothrow) PassRun;
  }
  if (opened && passes) {
    opened->device = device;
    opened->stream = stream;
    opened->pool = state->pool;
    opened->multiprocessors = multiprocessors;
    opened->computeCapability = 10 * major + minor;
    opened->fault = fault;
    opened->ticket = ticket;
    opened->passes = passes;
    *queue = opened;
    return AQ_OK;
  }
  delete opened;
  delete passes;
  cudaFree(ticket);
  cudaFreeHost(fault);
  cudaStreamDestroy(stream);
  (void)cudaGetLastError();
  if (status != cudaSuccess) return failCuda(err, status, "opening a queue");
  return fail(err, AQ_OOM, "cuda: out of host memory for a queue.");
}

// Errors have nowhere to go here and in release; at a process's end the driver may be gone already.
void queueClose(aq_queue* queue) {
  if (!queue) return;
  aq_error ignored;
  cudaSetDevice(queue->device);
  if (queue->recorder.isRecording()) captureEnd(queue, nullptr, &ignored);
  cudaStreamSynchronize(queue->stream);
  closeBlas(queue);
  closeStaging(queue->staging);
  queue->readings.clear();
  queue->cache.flush(queue->stream);
  for (const auto& arena : queue->recorder.arenas) arena->free(queue->stream);
  cudaStreamSynchronize(queue->stream);
  cudaFree(queue->ticket);
  cudaFreeHost(queue->fault);
  cudaStreamDestroy(queue->stream);
  (void)cudaGetLastError();
  delete queue->passes;
  delete queue;
}

// May be called by any thread; while another one records, it first waits for the recording's end.
int32_t queueSync(aq_queue* queue, aq_error* err) {
  if (refuseRecorded(queue, "a wait for the device", err) != AQ_OK) return err->code;
  const std::lock_guard lock(queue->recorder.waiting);
  CUDA_CHECK(cudaSetDevice(queue->device));
  CUDA_CHECK(cudaStreamSynchronize(queue->stream));
  return takeFault(queue->fault, err);
}

int32_t alloc(aq_queue* queue, uint64_t bytes, void** data, aq_error* err) {
  DeviceState* state = stateOf(queue->device, err);
  if (!state) return err->code;
  CUDA_CHECK(cudaSetDevice(queue->device));
  const cudaError_t status = takeMemory(queue, bytes, data);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    size_t freeBytes = 0, totalBytes = 0;
    cudaMemGetInfo(&freeBytes, &totalBytes);
    return fail(err, AQ_OOM,
                "cuda: device %d is out of memory: %llu bytes requested, %llu of %llu free; use a "
                "smaller batch or sequence length, or free the device of other programs.",
                queue->device, static_cast<unsigned long long>(bytes),
                static_cast<unsigned long long>(freeBytes),
                static_cast<unsigned long long>(totalBytes));
  }
  CUDA_CHECK(status);
  // A recording counts what its arena holds.
  if (!queue->recorder.current) state->countAlloc(bytes);
  return AQ_OK;
}

void release(aq_queue* queue, void* data, uint64_t bytes) {
  aq_error ignored;
  DeviceState* state = stateOf(queue->device, &ignored);
  if (!data || !state) return;
  cudaSetDevice(queue->device);
  if (giveMemory(queue, data, bytes)) state->countRelease(bytes);
}

int32_t copy(aq_queue* queue, void* dst, const void* src, uint64_t bytes, int32_t kind,
             aq_error* err) {
  if (bytes == 0) return AQ_OK;
  queue->calls++;
  CUDA_CHECK(cudaSetDevice(queue->device));
  switch (kind) {
    case AQ_HOST_TO_DEVICE:
      if (refuseRecorded(queue, "a copy from the host", err) != AQ_OK) return err->code;
      return copyToDevice(queue, dst, src, bytes, err);
    case AQ_DEVICE_TO_HOST: {
      if (refuseRecorded(queue, "a copy to the host", err) != AQ_OK) return err->code;
      if (copyToHost(queue, dst, src, bytes, err) != AQ_OK) return err->code;
      return takeFault(queue->fault, err);
    }
    case AQ_DEVICE_TO_DEVICE:
      CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, queue->stream));
      return AQ_OK;
    default:
      return fail(err, AQ_INTERNAL, "cuda: copy was called with the unknown kind %d.", kind);
  }
}

int32_t memory(int32_t device, aq_memory_info* info, aq_error* err) {
  DeviceState* state = stateOf(device, err);
  if (!state) return err->code;
  if (prepareDevice(device, *state, err) != AQ_OK) return err->code;
  uint64_t reserved = 0;
  CUDA_CHECK(cudaMemPoolGetAttribute(state->pool, cudaMemPoolAttrReservedMemCurrent, &reserved));
  *info = {};
  info->used_bytes = state->usedBytes.load();
  info->cached_bytes = reserved > info->used_bytes ? reserved - info->used_bytes : 0;
  info->peak_bytes = state->peakBytes.load();
  return AQ_OK;
}

int32_t setOption(aq_queue* queue, const char* name, const char* value, aq_error* err) {
  static constexpr struct {
    const char* name;
    Precision precision;
  } kPrecisions[] = {
      {"f32", Precision::kF32}, {"bf16", Precision::kBf16}, {"f16", Precision::kF16}};
  if (std::strcmp(name, "precision") != 0) {
    return fail(err, AQ_ARG, "cuda: there is no option '%s'; there is precision.", name);
  }
  for (const auto& known : kPrecisions) {
    if (std::strcmp(value, known.name) != 0) continue;
    queue->precision = known.precision;
    return AQ_OK;
  }
  return fail(err, AQ_ARG, "cuda: precision is f32, bf16 or f16, not '%s'.", value);
}

// A kernel of the table, which counts as a call.
template <auto kKernel>
int32_t call(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, int32_t n_out,
             const void* params, aq_error* err) {
  queue->calls++;
  const int32_t code = kKernel(queue, in, n_in, out, n_out, params, err);
  if (code != AQ_OK) queue->passes->end();  // it may not have been launched
  return code;
}

// What else enqueues.
template <auto kFunction, class... Rest>
int32_t counted(aq_queue* queue, Rest... rest) {
  queue->calls++;
  return kFunction(queue, rest...);
}

#define AQ_CUDA_KERNEL(name) {#name, sizeof(aq_##name##_params), call<name>},
const aq_kernel_row kRows[] = {AQ_CUDA_KERNELS};
#undef AQ_CUDA_KERNEL

const aq_backend kBackend = {
    .abi_version = AQ_ABI_VERSION,
    .struct_size = sizeof(aq_backend),
    .name = "cuda",
    .device_count = deviceCount,
    .device_info = deviceInfo,
    .queue_open = queueOpen,
    .queue_close = queueClose,
    .queue_sync = queueSync,
    .alloc = alloc,
    .release = release,
    .copy = copy,
    .read_start = counted<startReading>,
    .read_finish = finishReading,
    .memory = memory,
    .set_option = setOption,
    .rows = kRows,
    .row_count = sizeof kRows / sizeof kRows[0],
    .pad = 0,
    .capture_begin = counted<captureBegin>,
    .capture_end = counted<captureEnd>,
    .graph_launch = counted<graphLaunch>,
    .graph_free = graphFree,
};

}  // namespace

const aq_backend* backend() { return &kBackend; }

}  // namespace aq::cuda
