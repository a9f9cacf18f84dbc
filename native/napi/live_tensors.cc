// live_tensors.cc: what takes the memory when there is none left: the largest tensors that are alive
// in this environment. Views count as part of the tensor that they look into.
#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "native/core/shape.h"
#include "native/napi/env_state.h"
#include "native/napi/errors.h"
#include "native/napi/tensor_handle.h"

namespace aq {

namespace {

constexpr size_t kListed = 4;

struct Kind {
  int64_t bytes;  // of one
  int64_t count;
  std::string text;
};

// Buffers of one size that are seen in the same way count as one kind.
std::vector<Kind> kindsOf(const EnvState& state) {
  std::map<const Buffer*, const Tensor*> widest;
  for (const TensorHandle* handle : state.handles) {
    if (!handle->held()) continue;
    const Tensor& tensor = *handle->held();
    const Tensor*& known = widest[tensor.buffer.get()];
    if (!known || known->bytes() < tensor.bytes()) known = &tensor;
  }
  std::map<std::tuple<int64_t, std::string>, int64_t> counts;
  for (const auto& [buffer, tensor] : widest) {
    const std::string text = std::string(dtypeName(tensor->dtype)) + " " + toString(tensor->shape) +
                             " on " + tensor->queue().device();
    counts[{buffer->bytes(), text}]++;
  }
  std::vector<Kind> kinds;
  for (const auto& [key, count] : counts)
    kinds.push_back({std::get<0>(key), count, std::get<1>(key)});
  std::stable_sort(kinds.begin(), kinds.end(), [](const Kind& a, const Kind& b) {
    return a.bytes * a.count > b.bytes * b.count;
  });
  return kinds;
}

}  // namespace

Error withLargestTensors(Napi::Env env, const Error& error) {
  const std::vector<Kind> kinds = kindsOf(EnvState::of(env));
  if (kinds.empty()) return error;
  std::string list;
  for (size_t i = 0; i < std::min(kListed, kinds.size()); i++) {
    const Kind& kind = kinds[i];
    char size[64];
    snprintf(size, sizeof size, " (%.1f MB)", double(kind.bytes) * double(kind.count) / 1e6);
    list += (i ? ", " : "") +
            (kind.count > 1 ? std::to_string(kind.count) + " x " : std::string()) + kind.text +
            size;
  }
  std::string message = error.message;
  while (!message.empty() && message.back() == '.') message.pop_back();
  return Error{error.code, message + "; the largest tensors alive: " + list + "."};
}

}  // namespace aq
