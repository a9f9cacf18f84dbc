#include "native/core/op.h"

#include <algorithm>
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
    addFp4Ops(*list);
    addBlockOps(*list);
    addBlockOperandOps(*list);
    addBlockFp4Ops(*list);
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

// The spec of input i, which may be of a repeated group.
const InputSpec& inputSpec(const OpSpec& spec, size_t i) {
  if (i < spec.inputs.size()) return spec.inputs[i];
  const size_t first = size_t(spec.repeatFrom), group = spec.inputs.size() - first;
  return spec.inputs[first + (i - first) % group];
}

// How many inputs there are to be when `given` of them are: optional ones at the end may be left out.
size_t inputCount(const OpSpec& spec, size_t given) {
  const size_t all = spec.inputs.size();
  if (given < all && (spec.inputs[given].flags & kOptional)) return all;
  if (given > all && spec.repeatFrom >= 0) {
    const size_t group = all - size_t(spec.repeatFrom);
    if ((given - all) % group == 0) return given;
    raise(AQ_ARG, "%s: %zu inputs were given; after %zu they come in groups of %zu", spec.name,
          given, size_t(spec.repeatFrom), group);
  }
  if (given != all)
    raise(AQ_ARG, "%s: %zu inputs were given, %zu are needed", spec.name, given, all);
  return given;
}

void checkInputs(const OpSpec& spec, std::span<const Tensor* const> inputs) {
  const Queue* queue = nullptr;
  for (size_t i = 0; i < inputs.size(); i++) {
    const InputSpec& own = inputSpec(spec, i);
    if (!inputs[i]) {
      if (!(own.flags & kOptional)) raise(AQ_ARG, "%s: input %s is missing", spec.name, own.name);
      continue;
    }
    const Queue& where = inputs[i]->queue();
    if (queue && queue != &where) {
      raise(AQ_DEVICE, "%s: input %s is on %s, another input on %s", spec.name, own.name,
            where.device().c_str(), queue->device().c_str());
    }
    queue = &where;
  }
}
}  // namespace

std::vector<Tensor> invoke(size_t op, std::span<const Tensor* const> passed,
                           std::span<const double> values, std::span<const Tensor> given) {
  if (op >= opRegistry().size()) raise(AQ_ARG, "there is no op number %zu", op);
  const OpSpec& spec = opRegistry()[op];
  alignas(8) char params[kMaxParams] = {};
  fillParams(spec, values, params);
  std::vector<const Tensor*> inputs(passed.begin(), passed.end());
  inputs.resize(inputCount(spec, passed.size()));
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

  std::vector<aq_view> in(inputs.size()), out(outputs.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    if (inputs[i]) in[i] = inputs[i]->view();
  }
  for (size_t i = 0; i < outputs.size(); i++) out[i] = outputs[i].view();
  queue.countCalls(op, 1);
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
      fail(AQ_DTYPE, "%s must be f32 or f64, got %s %s", name(i), dtypeName(dtype(i)),
           toString(shape(i)).c_str());
    }
    if (first < 0) {
      first = i;
    } else if (dtype(i) != dtype(first)) {
      fail(AQ_DTYPE, "%s is %s but %s is %s: both must be the same", name(first),
           dtypeName(dtype(first)), name(i), dtypeName(dtype(i)));
    }
  }
  return dtype(first);
}

const char* Infer::name(int i) const { return inputSpec(spec_, size_t(i)).name; }

namespace {
bool isShort(int32_t dtype) { return dtype == AQ_BF16 || dtype == AQ_F16; }
}  // namespace

void Infer::compute(int32_t want, std::initializer_list<int> which) const {
  for (int i : which) {
    if (has(i) && dtype(i) != want) {
      fail(AQ_DTYPE, "%s must be %s as the other inputs are, got %s %s", name(i), dtypeName(want),
           dtypeName(dtype(i)), toString(shape(i)).c_str());
    }
  }
}

void Infer::stored(int s, int32_t compute) const {
  if (!has(s) || dtype(s) == compute || (compute == AQ_F32 && isShort(dtype(s)))) return;
  fail(AQ_DTYPE, "%s must be %s, got %s %s", name(s),
       compute == AQ_F64 ? "f64 as the other inputs are" : "f32, bf16 or f16", dtypeName(dtype(s)),
       toString(shape(s)).c_str());
}

int32_t Infer::computeOf(int s) const {
  const int32_t compute = dtype(s) == AQ_F64 ? AQ_F64 : AQ_F32;
  stored(s, compute);
  return compute;
}

int32_t Infer::gradient(int g, int s) const {
  const int32_t want = isShort(dtype(s)) ? int32_t(AQ_BF16) : dtype(s);
  if (dtype(g) != want) {
    fail(AQ_DTYPE, "%s must be %s as the gradient of a %s %s, got %s", name(g), dtypeName(want),
         dtypeName(dtype(s)), name(s), dtypeName(dtype(g)));
  }
  return want;
}

void Infer::same(int a, int b) const {
  if (shape(a) != shape(b)) {
    fail(AQ_SHAPE, "%s %s and %s %s must have the same shape", name(a), toString(shape(a)).c_str(),
         name(b), toString(shape(b)).c_str());
  }
}

void Infer::elements(int i, int64_t want, const char* meaning) const {
  if (numel(i) != want) {
    fail(AQ_SHAPE, "%s must have %lld elements (%s), got %s", name(i), static_cast<long long>(want),
         meaning, toString(shape(i)).c_str());
  }
}

void Infer::rank(int i, int want) const {
  if (int(shape(i).size()) != want) {
    fail(AQ_SHAPE, "%s must have %d dimensions, got %s", name(i), want, toString(shape(i)).c_str());
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
