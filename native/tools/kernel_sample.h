// kernel_sample.h: what a case of kernel_check is made of: sizes by letter, random inputs in CPU
// tensors, and calls by name through the engine. The same case and sizes give the same numbers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "native/core/error.h"
#include "native/core/op.h"

namespace aq::tools {

// Named numbers of a case, "M=2048 C=4096".
class Sizes {
 public:
  explicit Sizes(const std::string& text) : text_(text) {
    for (size_t at = 0; (at = text.find_first_not_of(' ', at)) != std::string::npos;) {
      const size_t end = std::min(text.find(' ', at), text.size());
      const size_t equals = text.find('=', at);
      char* rest = nullptr;
      const long long value = equals < end ? std::strtoll(&text[equals + 1], &rest, 10) : 0;
      if (!rest || rest != text.data() + end) {
        raise(AQ_ARG, "sizes are written as \"M=2048 C=4096\", got \"%s\"", text.c_str());
      }
      entries_.emplace_back(text.substr(at, equals - at), value);
      at = end;
    }
  }

  const std::string& text() const { return text_; }
  int64_t get(const char* name, int64_t fallback) const {
    for (const auto& [known, value] : entries_) {
      if (known == name) return value;
    }
    return fallback;
  }
  int64_t at(const char* name) const {
    const int64_t value = get(name, INT64_MIN);
    if (value == INT64_MIN) {
      raise(AQ_ARG, "this case needs the size %s, got \"%s\"", name, text_.c_str());
    }
    return value;
  }

 private:
  std::string text_;
  std::vector<std::pair<std::string, int64_t>> entries_;
};

using Params = std::vector<std::pair<const char*, double>>;

// One call of an op. A tensor without a buffer is an absent input; inputs left out at the end are
// absent too. `outputs` are empty, or tensors that the op adds to.
struct Sample {
  std::vector<Tensor> inputs;
  Params params;
  std::vector<Tensor> outputs;
};

inline size_t opIndex(const char* name) {
  const int index = findOp(name);
  if (index < 0) raise(AQ_ARG, "there is no op '%s'; --list prints them", name);
  return size_t(index);
}

// The flags of input i, which may be of a repeated group.
inline uint8_t inputFlags(const OpSpec& spec, size_t i) {
  if (i < spec.inputs.size()) return spec.inputs[i].flags;
  const size_t first = size_t(spec.repeatFrom), group = spec.inputs.size() - first;
  return spec.inputs[first + (i - first) % group].flags;
}

// Runs the op, with the parameters in the order of its field table. Fields that are not named are
// 0.
inline std::vector<Tensor> call(const char* name, const Sample& sample) {
  const size_t index = opIndex(name);
  const OpSpec& spec = opRegistry()[index];
  std::vector<const Tensor*> inputs(std::max(spec.inputs.size(), sample.inputs.size()), nullptr);
  for (size_t i = 0; i < sample.inputs.size(); i++) {
    if (sample.inputs[i].buffer) inputs[i] = &sample.inputs[i];
  }
  std::vector<double> values(spec.fields.size(), 0);
  for (const auto& [field, value] : sample.params) {
    size_t at = 0;
    while (at < values.size() && std::strcmp(spec.fields[at].name, field) != 0) at++;
    if (at == values.size()) raise(AQ_ARG, "%s has no parameter %s", name, field);
    values[at] = value;
  }
  return invoke(index, inputs, values, sample.outputs);
}

inline Tensor copyTo(const std::shared_ptr<Queue>& queue, const Tensor& tensor) {
  if (!tensor.buffer) return {};
  std::vector<char> bytes(size_t(tensor.bytes()));
  tensor.read(bytes.data(), 0, tensor.bytes());
  Tensor copy = Tensor::empty(queue, tensor.dtype, tensor.shape);
  copy.write(bytes.data(), 0, copy.bytes());
  return copy;
}

inline Sample copyTo(const std::shared_ptr<Queue>& queue, const Sample& sample) {
  Sample copy;
  copy.params = sample.params;
  for (const Tensor& input : sample.inputs) copy.inputs.push_back(copyTo(queue, input));
  for (const Tensor& output : sample.outputs) copy.outputs.push_back(copyTo(queue, output));
  return copy;
}

// Builds the sample of a case: draws tensors on the CPU and collects inputs and parameters.
class Maker {
 public:
  Maker(std::shared_ptr<Queue> cpu, int32_t dtype, const Sizes& sizes)
      : cpu_(std::move(cpu)), dtype_(dtype), sizes_(sizes) {}

  int64_t operator[](const char* name) const { return sizes_.at(name); }
  int64_t get(const char* name, int64_t fallback) const { return sizes_.get(name, fallback); }

  int32_t dtype() const { return dtype_; }

  void in(const Tensor& tensor) { sample.inputs.push_back(tensor); }
  void absent() { sample.inputs.push_back({}); }
  void param(const char* name, double value) { sample.params.emplace_back(name, value); }
  // A size of the case that is a parameter of the op, under the same name.
  void param(const char* name) { param(name, double(sizes_.at(name))); }
  void out(const Tensor& tensor) { sample.outputs.push_back(tensor); }

  Tensor normal(const Shape& shape, double deviation = 1, double mean = 0) {
    return make(shape, [&] {
      const double radius = std::sqrt(-2 * std::log(uniform()));
      return mean + deviation * radius * std::cos(6.283185307179586 * uniform());
    });
  }
  Tensor uniform(const Shape& shape, double low, double high) {
    return make(shape, [&] { return low + (high - low) * uniform(); });
  }
  // value(i) for element i.
  template <class F>
  Tensor from(const Shape& shape, F&& value) {
    std::vector<double> values(size_t(aq::numel(shape)));
    for (size_t i = 0; i < values.size(); i++) values[i] = value(int64_t(i));
    return store(shape, values);
  }
  // Whole numbers 0 .. end - 1, as i32 or u8.
  Tensor integers(const Shape& shape, int64_t end, int32_t dtype) {
    const Tensor drawn = make(shape, [&] { return std::floor(uniform() * double(end)); });
    return convert(drawn, dtype);
  }
  Tensor convert(const Tensor& x, int32_t dtype) {
    return run("cast", {x}, {{"dtype", double(dtype)}})[0];
  }
  // x in the short type that the sizes name as s (2: bf16, 3: f16), where the case runs in f32.
  Tensor stored(const Tensor& x) {
    const int64_t type = dtype_ == AQ_F32 ? get("s", dtype_) : dtype_;
    return type == dtype_ ? x : convert(x, int32_t(type));
  }
  // The gradient of what `stored` makes: bf16 where that is short.
  Tensor gradient(const Tensor& g) {
    return dtype_ == AQ_F32 && get("s", dtype_) != dtype_ ? convert(g, AQ_BF16) : g;
  }
  // Scale and zero of x (times the factors of its rows and columns, if any), as inputs.
  void grid(const Tensor& x, double bits, double group, const std::vector<Tensor>& factors = {}) {
    std::vector<Tensor> inputs = {x, {}};
    inputs.insert(inputs.end(), factors.begin(), factors.end());
    const auto made =
        run("quant_grid", inputs, {{"bits", bits}, {"group", group}, {"floor", 1e-6}});
    in(made[0]);
    in(made[1]);
  }
  // Absent ones for 0 bits.
  void gridOrNone(const Tensor& x, double bits, double group,
                  const std::vector<Tensor>& factors = {}) {
    if (bits > 0) return grid(x, bits, group, factors);
    absent();
    absent();
  }

  // An op on the CPU, for inputs that follow from others.
  std::vector<Tensor> run(const char* op, std::vector<Tensor> inputs, Params params = {}) {
    return call(op, {std::move(inputs), std::move(params), {}});
  }

  Sample sample;

 private:
  // Numbers after which long tensors repeat; prime, so that rows differ.
  static constexpr size_t kPeriod = 65537;

  // In (0, 1); a counter hashed by two multiplications.
  double uniform() {
    uint64_t x = (state_ += 0x9e3779b97f4a7c15u);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (double((x ^ (x >> 31)) >> 12) + 0.5) / 4503599627370496.0;
  }
  template <class F>
  Tensor make(const Shape& shape, F&& next) {
    std::vector<double> values(size_t(aq::numel(shape)));
    for (size_t i = 0; i < values.size(); i++) {
      values[i] = i < kPeriod ? next() : values[i - kPeriod];
    }
    return store(shape, values);
  }
  Tensor store(const Shape& shape, const std::vector<double>& values) {
    Tensor tensor = Tensor::empty(cpu_, dtype_, shape);
    if (dtype_ == AQ_F64) {
      tensor.write(values.data(), 0, tensor.bytes());
    } else {
      const std::vector<float> singles(values.begin(), values.end());
      tensor.write(singles.data(), 0, tensor.bytes());
    }
    return tensor;
  }

  std::shared_ptr<Queue> cpu_;
  int32_t dtype_;
  const Sizes& sizes_;
  uint64_t state_ = 1;
};

// A row of the table: an op, its sizes, and how its inputs are made. CPU and CUDA may differ by
// `slack` times the tolerance of the type.
struct KernelCase {
  const char* op;
  std::vector<const char*> small;
  std::vector<const char*> real;
  void (*make)(Maker& m);
  double slack = 1;
};

}  // namespace aq::tools
