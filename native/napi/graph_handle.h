// graph_handle.h: the JavaScript object that holds a recorded sequence of ops (core/graph.h).
#pragma once
#include <memory>

#include "native/core/graph.h"
#include "native/napi/napi_setup.h"

namespace aq {

class GraphHandle : public Napi::ObjectWrap<GraphHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object wrap(Napi::Env env, std::shared_ptr<Graph> graph);

  explicit GraphHandle(const Napi::CallbackInfo& info);

 private:
  void launch(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<Graph> graph_;
};

// captureBegin(device) -> whether it records; captureEnd(device) -> GraphHandle;
// captureAbandon(device)
void exportCapture(Napi::Env env, Napi::Object exports);

}  // namespace aq
