// env_state.h: what one JavaScript environment (the main thread or a worker) owns: its queues, the
// constructor of its tensor handles, and the count of handles that are alive.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "native/core/device.h"
#include "native/napi/napi_setup.h"

namespace aq {

struct EnvState {
  Napi::FunctionReference tensorConstructor;
  std::map<std::string, std::shared_ptr<Queue>> queues;
  int64_t liveTensors = 0;

  static EnvState& of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }

  // The environment's queue on a device, opened at first use.
  const std::shared_ptr<Queue>& queue(const std::string& device) {
    auto found = queues.find(device);
    if (found == queues.end()) found = queues.emplace(device, Queue::open(device)).first;
    return found->second;
  }
};

}  // namespace aq
