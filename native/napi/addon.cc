// addon.cc: what `require("aq_native.node")` runs, once per environment.
#include "native/core/device.h"
#include "native/cpu/backend.h"
#include "native/napi/device_api.h"
#include "native/napi/env_state.h"
#include "native/napi/errors.h"
#include "native/napi/graph_handle.h"
#include "native/napi/napi_setup.h"
#include "native/napi/op_api.h"
#include "native/napi/stay_loaded.h"
#include "native/napi/tensor_handle.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  aq::stayLoaded();
  auto* state = new aq::EnvState;
  env.SetInstanceData(state);
  state->tensorConstructor = Napi::Persistent(aq::TensorHandle::define(env));
  state->graphConstructor = Napi::Persistent(aq::GraphHandle::define(env));
  aq::guarded(env, [] { aq::registerBackend(aq_cpu_backend()); });
  aq::exportOps(env, exports);
  aq::exportDevices(env, exports);
  aq::exportCapture(env, exports);
  exports.Set("abiVersion", Napi::Number::New(env, AQ_ABI_VERSION));
  return exports;
}

NODE_API_MODULE(aq_native, init)

}  // namespace
