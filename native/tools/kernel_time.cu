// kernel_time.cu: times by events around CUDA graphs of many calls, so that launches cost next to
// nothing. The calls go round several copies of the tensors, together larger than the second-level
// cache: what is timed reads memory.
#include "native/tools/kernel_time.h"

#include <algorithm>
#include <functional>

#include "native/core/graph.h"
#include "native/cuda/queue.h"

namespace aq::tools {

namespace {

void checkCuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  raise(AQ_CUDA, "%s failed: %s", what, cudaGetErrorString(status));
}

// Seconds of the median run of `work`, which enqueues on the stream.
double medianSeconds(cudaStream_t stream, const std::function<void()>& work) {
  constexpr int kMostRuns = 25, kFewestRuns = 5;
  constexpr double kEnough = 0.3;  // seconds in all
  cudaEvent_t begin, end;
  checkCuda(cudaEventCreate(&begin), "cudaEventCreate");
  checkCuda(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> seconds;
  double total = 0;
  for (int run = -2; run < kMostRuns && (run < kFewestRuns || total < kEnough); run++) {
    checkCuda(cudaEventRecord(begin, stream), "cudaEventRecord");
    work();
    checkCuda(cudaEventRecord(end, stream), "cudaEventRecord");
    checkCuda(cudaEventSynchronize(end), "waiting for the kernel");
    float milliseconds = 0;
    checkCuda(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (run < 0) continue;  // warming up
    seconds.push_back(milliseconds / 1e3);
    total += seconds.back();
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

int64_t trafficOf(const char* op, const Sample& sample, const std::vector<Tensor>& outputs) {
  const OpSpec& spec = opRegistry()[opIndex(op)];
  int64_t bytes = 0;
  for (size_t i = 0; i < sample.inputs.size(); i++) {
    if (!sample.inputs[i].buffer) continue;
    bytes += sample.inputs[i].bytes() * (inputFlags(spec, i) & kMutable ? 2 : 1);
  }
  for (const Tensor& output : outputs) bytes += output.bytes();
  if (std::strcmp(op, "gather_rows") == 0) {
    // Of the table only the rows that are asked for.
    const Tensor& table = sample.inputs[0];
    bytes += sample.inputs[1].numel() * lastDim(table.shape) * dtypeBytes(table.dtype);
    bytes -= table.bytes();
  }
  return bytes;
}

}  // namespace

double copyRate(const std::shared_ptr<Queue>& queue) {
  const int64_t bytes = int64_t(1) << 28;
  const Tensor from = Tensor::empty(queue, AQ_U8, {bytes}),
               to = Tensor::empty(queue, AQ_U8, {bytes});
  const cudaStream_t stream = queue->handle()->stream;
  const double seconds = medianSeconds(stream, [&] {
    checkCuda(cudaMemcpyAsync(to.view().data, from.view().data, size_t(bytes),
                              cudaMemcpyDeviceToDevice, stream),
              "cudaMemcpyAsync");
  });
  return 2 * double(bytes) / seconds;
}

Timing timeKernel(const char* op, const std::shared_ptr<Queue>& queue, const Sample& sample) {
  constexpr int64_t kMostCopies = 32, kFewestCalls = 16;
  constexpr double kLongSeconds = 5e-3;  // a kernel beside which a launch is nothing
  const cudaStream_t stream = queue->handle()->stream;
  int cacheBytes = 0;
  checkCuda(cudaDeviceGetAttribute(&cacheBytes, cudaDevAttrL2CacheSize, queue->handle()->device),
            "cudaDeviceGetAttribute");

  std::vector<Sample> copies = {copyTo(queue, sample)};
  copies[0].outputs = call(op, copies[0]);
  const int64_t bytes = trafficOf(op, sample, copies[0].outputs);
  const double once = medianSeconds(stream, [&] { call(op, copies[0]); });
  const int64_t wanted = std::clamp<int64_t>(3 * int64_t(cacheBytes) / (bytes + 1) + 1, 1,
                                             once > kLongSeconds ? 2 : kMostCopies);
  while (int64_t(copies.size()) < wanted) {
    copies.push_back(copyTo(queue, sample));
    copies.back().outputs = call(op, copies.back());
  }
  const int64_t calls = once > kLongSeconds ? wanted : std::max(wanted, kFewestCalls);
  const auto enqueue = [&] {
    for (int64_t i = 0; i < calls; i++) call(op, copies[size_t(i % wanted)]);
  };

  if (!Graph::begin(queue)) raise(AQ_UNSUPPORTED, "%s does not record", queue->device().c_str());
  std::shared_ptr<Graph> graph;
  try {
    enqueue();
    graph = Graph::end(queue);
  } catch (const Error&) {
    // An op that waits is timed launch by launch.
    Graph::abandon(queue);
  }
  const double seconds = medianSeconds(stream, [&] {
    if (graph) {
      graph->launch();
    } else {
      enqueue();
    }
  });
  queue->sync();
  return {seconds / double(calls), bytes, graph != nullptr};
}

}  // namespace aq::tools
