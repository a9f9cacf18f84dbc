#include "native/core/op.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "native/core/error.h"

namespace aq {

const std::vector<OpSpec>& opRegistry() {
  static const auto* ops = [] {
    auto* list = new std::vector<OpSpec>;
    addElementwiseOps(*list);
    addFoldOps(*list);
    addLinalgOps(*list);
    addOptimizerOps(*list);
    addQuantizeOps(*list);
    addBlockOps(*list);
    addEvaluationOps(*list);
    addPackedOps(*list);
    return list;
  }();
  return *ops;
}

int findOp(const char* name) {
  const auto& ops = opRegistry();
  for (size_t i = 0; i < ops.size(); i++) {
    if (std::strcmp(ops[i].name, name) == 0) return int(i);
  }
  return -1;
}

namespace {
// AQ_SYNC=1 waits after every kernel, so that a failure is reported by the op that caused it.
bool syncsAlways() {
  static const bool always = [] {
    const char* value = std::getenv("AQ_SYNC");
    return value && std::strcmp(value, "1") == 0;
  }();
  return always;
}

constexpr size_t kMaxInputs = 16;
constexpr size_t kMaxParams = 128;

void fillParams(const OpSpec& spec, std::span<const double> values, char* params) {
  if (values.size() != spec.fields.size()) {
    raise(AQ_ARG, "%s: %zu parameters were given, %zu are needed", spec.name, values.size(),
          spec.fields.size());
  }
  for (size_t i = 0; i < values.size(); i++) {
    const Field& field = spec.fields[i];
    const double value = values[i];
    if (field.kind == FieldKind::kFloat) {
      if (std::isnan(value))
        raise(AQ_ARG, "%s: parameter %s is not a number", spec.name, field.name);
      std::memcpy(params + field.offset, &value, sizeof value);
      continue;
    }
    if (!(value >= -2147483648.0 && value <= 2147483647.0) || value != std::floor(value)) {
      raise(AQ_ARG, "%s: parameter %s must be a whole number that fits 32 bits, got %g", spec.name,
            field.name, value);
    }
    const int32_t whole = int32_t(value);
    std::memcpy(params + field.offset, &whole, sizeof whole);
  }
}

void checkInputs(const OpSpec& spec, std::span<const Tensor* const> inputs) {
  if (inputs.size() != spec.inputs.size()) {
    raise(AQ_ARG, "%s: %zu inputs were given, %zu are needed", spec.name, inputs.size(),
          spec.inputs.size());
  }
  const Queue* queue = nullptr;
  for (size_t i = 0; i < inputs.size(); i++) {
    if (!inputs[i]) {
      if (!(spec.inputs[i].flags & kOptional)) {
        raise(AQ_ARG, "%s: input %s is missing", spec.name, spec.inputs[i].name);
      }
      continue;
    }
    const Queue& own = inputs[i]->queue();
    if (queue && queue != &own) {
      raise(AQ_DEVICE, "%s: input %s is on %s, another input on %s", spec.name, spec.inputs[i].name,
            own.device().c_str(), queue->device().c_str());
    }
    queue = &own;
  }
}
}  // namespace

std::vector<Tensor> invoke(size_t op, std::span<const Tensor* const> passed,
                           std::span<const double> values, std::span<const Tensor> given) {
  if (op >= opRegistry().size()) raise(AQ_ARG, "there is no op number %zu", op);
  const OpSpec& spec = opRegistry()[op];
  alignas(8) char params[kMaxParams] = {};
  fillParams(spec, values, params);
  // Optional inputs at the end may be left out.
  std::array<const Tensor*, kMaxInputs> all{};
  std::copy_n(passed.begin(), std::min(passed.size(), kMaxInputs), all.begin());
  const bool isShort =
      passed.size() < spec.inputs.size() && (spec.inputs[passed.size()].flags & kOptional);
  const std::span<const Tensor* const> inputs(all.data(),
                                              isShort ? spec.inputs.size() : passed.size());
  checkInputs(spec, inputs);

  Infer infer(spec, inputs, params);
  spec.infer(infer);

  const Tensor* any = nullptr;
  for (const Tensor* input : inputs) any = any ? any : input;
  const Queue& queue = any->queue();
  const aq_kernel kernel = queue.backend().kernels[op];
  if (!kernel) {
    raise(AQ_UNSUPPORTED, "%s has no kernel for '%s': move the tensors to cpu",
          queue.device().c_str(), spec.name);
  }

  std::vector<Tensor> outputs;
  outputs.reserve(infer.outputs.size());
  if (!given.empty() && given.size() != infer.outputs.size()) {
    raise(AQ_ARG, "%s: %zu outputs were given, it has %zu", spec.name, given.size(),
          infer.outputs.size());
  }
  for (size_t i = 0; i < infer.outputs.size(); i++) {
    const OutputSpec& want = infer.outputs[i];
    if (given.empty()) {
      outputs.push_back(Tensor::empty(any->buffer->queue(), want.dtype, want.shape));
      continue;
    }
    // A given output may be flattened differently: only type and number of elements count.
    if (given[i].dtype != want.dtype || given[i].numel() != numel(want.shape)) {
      raise(AQ_SHAPE, "%s: output %s must be %s %s, the given tensor is %s %s", spec.name,
            spec.outputs[i], dtypeName(want.dtype), toString(want.shape).c_str(),
            dtypeName(given[i].dtype), toString(given[i].shape).c_str());
    }
    if (&given[i].queue() != &queue) {
      raise(AQ_DEVICE, "%s: output %s is on %s, the inputs on %s", spec.name, spec.outputs[i],
            given[i].queue().device().c_str(), queue.device().c_str());
    }
    outputs.push_back(given[i]);
  }

  std::array<aq_view, kMaxInputs> in{};
  std::array<aq_view, kMaxInputs> out{};
  for (size_t i = 0; i < inputs.size(); i++) {
    if (inputs[i]) in[i] = inputs[i]->view();
  }
  for (size_t i = 0; i < outputs.size(); i++) out[i] = outputs[i].view();
  queue.backend().calls[op].fetch_add(1, std::memory_order_relaxed);
  aq_error err{};
  const int32_t status = kernel(queue.handle(), in.data(), int32_t(inputs.size()), out.data(),
                                int32_t(outputs.size()), params, &err);
  if (status != AQ_OK) throw Error{status, err.text};
  if (syncsAlways()) {
    try {
      queue.sync();
    } catch (const Error& error) {
      throw Error{error.code, std::string(spec.name) + ": " + error.message};
    }
  }
  return outputs;
}

// ---------------------------------------------------------------- shape rules' vocabulary

int32_t Infer::compute(std::initializer_list<int> which) const {
  int first = -1;
  for (int i : which) {
    if (!has(i)) continue;
    if (!isCompute(dtype(i))) {
      fail(AQ_DTYPE, "%s must be f32 or f64, got %s %s", spec_.inputs[size_t(i)].name,
           dtypeName(dtype(i)), toString(shape(i)).c_str());
    }
    if (first < 0) {
      first = i;
    } else if (dtype(i) != dtype(first)) {
      fail(AQ_DTYPE, "%s is %s but %s is %s: both must be the same",
           spec_.inputs[size_t(first)].name, dtypeName(dtype(first)), spec_.inputs[size_t(i)].name,
           dtypeName(dtype(i)));
    }
  }
  return dtype(first);
}

void Infer::same(int a, int b) const {
  if (shape(a) != shape(b)) {
    fail(AQ_SHAPE, "%s %s and %s %s must have the same shape", spec_.inputs[size_t(a)].name,
         toString(shape(a)).c_str(), spec_.inputs[size_t(b)].name, toString(shape(b)).c_str());
  }
}

void Infer::elements(int i, int64_t want, const char* meaning) const {
  if (numel(i) != want) {
    fail(AQ_SHAPE, "%s must have %lld elements (%s), got %s", spec_.inputs[size_t(i)].name,
         static_cast<long long>(want), meaning, toString(shape(i)).c_str());
  }
}

void Infer::rank(int i, int want) const {
  if (int(shape(i).size()) != want) {
    fail(AQ_SHAPE, "%s must have %d dimensions, got %s", spec_.inputs[size_t(i)].name, want,
         toString(shape(i)).c_str());
  }
}

void Infer::range(const char* param, double value, double low, double high) const {
  if (!(value >= low && value <= high)) {
    fail(AQ_ARG, "%s must be from %g to %g, got %g", param, low, high, value);
  }
}

void Infer::fail(int32_t code, const char* format, ...) const {
  char text[900];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  raise(code, "%s: %s", spec_.name, text);
}

}  // namespace aq
