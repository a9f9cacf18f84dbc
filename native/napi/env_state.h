// env_state.h: what one JavaScript environment (the main thread or a worker) owns: its queues, the
// constructors of its handles, and the tensor handles that there are.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "native/core/device.h"
#include "native/napi/napi_setup.h"

namespace aq {

class Graph;
struct Tensor;
class TensorHandle;

struct EnvState {
  Napi::FunctionReference tensorConstructor;
  Napi::FunctionReference graphConstructor;
  std::map<std::string, std::shared_ptr<Queue>> queues;
  Tensor* incoming = nullptr;            // what the handle under construction is to hold
  std::shared_ptr<Graph> incomingGraph;  // likewise
  // Every handle, so that whatever else JavaScript passes for one is told apart without a type tag,
  // which costs more than the rest of a handle.
  std::unordered_set<const TensorHandle*> handles;
  int64_t liveTensors = 0;  // handles that hold a tensor
  // Empty handles to be used again: making a JavaScript object with a finalizer takes longer than
  // most of an op's work before its kernel runs. They are kept alive by a reference of their own.
  std::vector<TensorHandle*> spare;
  static constexpr size_t kMostSpare = 4096;

  static EnvState& of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }

  // The environment's queue on a device, opened at first use.
  const std::shared_ptr<Queue>& queue(const std::string& device) {
    auto found = queues.find(device);
    if (found == queues.end()) found = queues.emplace(device, Queue::open(device)).first;
    return found->second;
  }
};

}  // namespace aq
