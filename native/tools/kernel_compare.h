// kernel_compare.h: one call of an op on a device, twice and recorded, against the same call on the
// CPU.
#pragma once
#include <algorithm>

#include "native/core/graph.h"
#include "native/tools/kernel_sample.h"

namespace aq::tools {

// What an op leaves behind: its outputs, then the inputs that it wrote.
inline std::vector<Tensor> resultsOf(const char* op, const Sample& sample,
                                     std::vector<Tensor> outputs) {
  const OpSpec& spec = opRegistry()[opIndex(op)];
  for (size_t i = 0; i < sample.inputs.size(); i++) {
    if (sample.inputs[i].buffer && (inputFlags(spec, i) & kMutable)) {
      outputs.push_back(sample.inputs[i]);
    }
  }
  return outputs;
}

inline std::vector<char> bytesOf(const Tensor& tensor) {
  std::vector<char> bytes(size_t(tensor.bytes()));
  tensor.read(bytes.data(), 0, tensor.bytes());
  return bytes;
}

// |a - b| / |b| over all elements of two tensors of one type, infinity where a number is missing.
inline double distance(const std::shared_ptr<Queue>& cpu, const Tensor& a, const Tensor& b) {
  const auto doubles = [&](const Tensor& x) {
    const Tensor wide = call("cast", {{copyTo(cpu, x)}, {{"dtype", AQ_F64}}, {}})[0];
    std::vector<double> values(size_t(wide.numel()));
    wide.read(values.data(), 0, wide.bytes());
    return values;
  };
  const std::vector<double> left = doubles(a), right = doubles(b);
  double difference = 0, size = 0;
  for (size_t i = 0; i < left.size(); i++) {
    difference += (left[i] - right[i]) * (left[i] - right[i]);
    size += right[i] * right[i];
  }
  if (!std::isfinite(difference)) return INFINITY;
  return std::sqrt(difference) / (size > 0 ? std::sqrt(size) : 1);
}

// Whether an op computes in f64: what it is given says so, not the type of a sum that it returns.
inline bool isWide(const char* op, const Sample& sample) {
  const OpSpec& spec = opRegistry()[opIndex(op)];
  for (size_t i = 0; i < sample.inputs.size(); i++) {
    // Optional ones, as a schedule, may have a type of their own.
    if (sample.inputs[i].buffer && !(inputFlags(spec, i) & kOptional)) {
      return sample.inputs[i].dtype == AQ_F64;
    }
  }
  return false;
}

// How far results of the type may be from the CPU's.
inline double allowedFor(const KernelCase& c, int32_t dtype, bool isLowPrecision) {
  if (dtype == AQ_F64) return 1e-11 * c.slack;
  const bool isLow = dtype == AQ_BF16 || dtype == AQ_F16 || (isLowPrecision && dtype == AQ_F32);
  return isLow ? std::max(2e-2, 2e-5 * c.slack) : 2e-5 * c.slack;
}

// The same call recorded and run once. A device that does not record just makes the call.
inline std::vector<Tensor> runRecorded(const char* op, const Sample& sample,
                                       const std::shared_ptr<Queue>& device) {
  if (!Graph::begin(device)) return resultsOf(op, sample, call(op, sample));
  std::vector<Tensor> results;
  try {
    results = resultsOf(op, sample, call(op, sample));
  } catch (const Error&) {
    Graph::abandon(device);
    throw;
  }
  const auto graph = Graph::end(device);
  graph->launch();
  device->sync();
  return results;
}

struct Verdict {
  double distance = 0, allowed = 1;  // of the worst result
  bool isRepeatable = true;
};

inline Verdict compare(const KernelCase& c, const Sample& sample,
                       const std::shared_ptr<Queue>& device, const std::shared_ptr<Queue>& cpu,
                       bool isLowPrecision) {
  Sample first = copyTo(device, sample), second = copyTo(device, sample);
  const auto ofFirst = resultsOf(c.op, first, call(c.op, first));
  device->sync();
  if (second.outputs.empty()) {
    const size_t outputs = opRegistry()[opIndex(c.op)].outputs.size();
    for (size_t i = 0; i < outputs; i++) {
      Tensor poisoned = Tensor::empty(device, ofFirst[i].dtype, ofFirst[i].shape);
      const std::vector<char> nan(size_t(poisoned.bytes()), char(0xff));
      poisoned.write(nan.data(), 0, poisoned.bytes());
      second.outputs.push_back(poisoned);
    }
  }
  const auto ofSecond = resultsOf(c.op, second, call(c.op, second));
  device->sync();

  const auto ofThird = runRecorded(c.op, copyTo(device, sample), device);

  const Sample own = copyTo(cpu, sample);
  const auto expected = resultsOf(c.op, own, call(c.op, own));
  Verdict verdict;
  for (size_t i = 0; i < expected.size(); i++) {
    const std::vector<char> bytes = bytesOf(ofFirst[i]);
    verdict.isRepeatable &= bytes == bytesOf(ofSecond[i]) && bytes == bytesOf(ofThird[i]);
    const double off = distance(cpu, ofSecond[i], expected[i]);
    const bool isSum = expected[i].dtype == AQ_F64 && !isWide(c.op, own);
    const double allowed =
        allowedFor(c, isSum ? int32_t(AQ_F32) : expected[i].dtype, isLowPrecision);
    // The worst by its own measure.
    if (i == 0 || off / allowed > verdict.distance / verdict.allowed) {
      verdict.distance = off;
      verdict.allowed = allowed;
    }
  }
  return verdict;
}

}  // namespace aq::tools
