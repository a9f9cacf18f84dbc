#include "native/napi/graph_handle.h"

#include "native/napi/env_state.h"
#include "native/napi/errors.h"

namespace aq {

Napi::Function GraphHandle::define(Napi::Env env) {
  return DefineClass(env, "GraphHandle",
                     {
                         InstanceMethod<&GraphHandle::launch>("launch"),
                         InstanceMethod<&GraphHandle::dispose>("dispose"),
                     });
}

GraphHandle::GraphHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<GraphHandle>(info) {
  EnvState& state = EnvState::of(info.Env());
  if (!state.incomingGraph) {
    throwToJs(info.Env(), Error{AQ_ARG, "graphs are recorded, not made by this constructor"});
  }
  graph_ = std::move(state.incomingGraph);
}

Napi::Object GraphHandle::wrap(Napi::Env env, std::shared_ptr<Graph> graph) {
  EnvState& state = EnvState::of(env);
  state.incomingGraph = std::move(graph);
  return state.graphConstructor.New({});
}

void GraphHandle::launch(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!graph_) throwToJs(env, Error{AQ_DISPOSED, "the graph was used after dispose()"});
  guarded(env, [&] { graph_->launch(); });
}

void GraphHandle::dispose(const Napi::CallbackInfo&) { graph_.reset(); }

namespace {

const std::shared_ptr<Queue>& readQueue(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsString()) throwToJs(env, Error{AQ_ARG, "a device must be a name, like 'cpu'"});
  const std::string device = info[0].As<Napi::String>().Utf8Value();
  return guarded(
      env, [&]() -> const std::shared_ptr<Queue>& { return EnvState::of(env).queue(device); });
}

Napi::Value captureBegin(const Napi::CallbackInfo& info) {
  const auto& queue = readQueue(info);
  return Napi::Boolean::New(info.Env(), guarded(info.Env(), [&] { return Graph::begin(queue); }));
}

Napi::Value captureEnd(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& queue = readQueue(info);
  return guarded(env, [&] { return GraphHandle::wrap(env, Graph::end(queue)); });
}

void captureAbandon(const Napi::CallbackInfo& info) { Graph::abandon(readQueue(info)); }

}  // namespace

void exportCapture(Napi::Env env, Napi::Object exports) {
  exports.Set("captureBegin", Napi::Function::New(env, captureBegin, "captureBegin"));
  exports.Set("captureEnd", Napi::Function::New(env, captureEnd, "captureEnd"));
  exports.Set("captureAbandon", Napi::Function::New(env, captureAbandon, "captureAbandon"));
}

}  // namespace aq
