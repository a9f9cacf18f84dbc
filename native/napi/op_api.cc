#include "native/napi/op_api.h"

#include <array>

#include "native/core/op.h"
#include "native/napi/errors.h"
#include "native/napi/tensor_handle.h"

namespace aq {

namespace {

// ops() -> [{name, inputs: [{name, optional, mutable}], outputs: [name], params: [{name, whole}]}]
Napi::Value ops(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& registry = opRegistry();
  auto list = Napi::Array::New(env, registry.size());
  for (size_t i = 0; i < registry.size(); i++) {
    const OpSpec& spec = registry[i];
    auto inputs = Napi::Array::New(env);
    for (size_t k = 0; k < spec.inputs.size(); k++) {
      auto input = Napi::Object::New(env);
      input.Set("name", spec.inputs[k].name);
      input.Set("optional", Napi::Boolean::New(env, spec.inputs[k].flags & kOptional));
      input.Set("mutable", Napi::Boolean::New(env, spec.inputs[k].flags & kMutable));
      inputs.Set(uint32_t(k), input);
    }
    auto outputs = Napi::Array::New(env);
    for (size_t k = 0; k < spec.outputs.size(); k++) outputs.Set(uint32_t(k), spec.outputs[k]);
    auto params = Napi::Array::New(env);
    for (size_t k = 0; k < spec.fields.size(); k++) {
      auto param = Napi::Object::New(env);
      param.Set("name", spec.fields[k].name);
      param.Set("whole", Napi::Boolean::New(env, spec.fields[k].kind == FieldKind::kInt));
      params.Set(uint32_t(k), param);
    }
    auto op = Napi::Object::New(env);
    op.Set("name", spec.name);
    op.Set("inputs", inputs);
    op.Set("outputs", outputs);
    op.Set("params", params);
    list.Set(uint32_t(i), op);
  }
  return list;
}

constexpr size_t kMaxInputs = 65536, kMaxParams = 16;

// invoke(op, inputs: (TensorHandle | undefined)[], params: number[], outs?: TensorHandle[])
//   -> TensorHandle[]
Napi::Value invokeOp(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const uint32_t op = info[0].As<Napi::Number>().Uint32Value();
  const auto inputs = info[1].As<Napi::Array>();
  const auto params = info[2].As<Napi::Array>();
  const uint32_t inputCount = inputs.Length(), paramCount = params.Length();
  if (inputCount > kMaxInputs || paramCount > kMaxParams) {
    throwToJs(env, Error{AQ_ARG, "invoke: too many inputs or parameters"});
  }
  std::vector<const Tensor*> in(inputCount);
  for (uint32_t i = 0; i < inputCount; i++) {
    const Napi::Value value = inputs[i];
    if (value.IsUndefined()) continue;
    const auto& registry = opRegistry();
    const bool known = op < registry.size() && i < registry[op].inputs.size();
    in[i] = &TensorHandle::unwrap(value, known ? registry[op].inputs[i].name : "an input");
  }
  std::array<double, kMaxParams> values{};
  for (uint32_t i = 0; i < paramCount; i++) {
    values[i] = Napi::Value(params[i]).As<Napi::Number>().DoubleValue();
  }
  std::vector<Tensor> given;
  if (info.Length() > 3 && info[3].IsArray()) {
    const auto outs = info[3].As<Napi::Array>();
    for (uint32_t i = 0; i < outs.Length(); i++) {
      given.push_back(TensorHandle::unwrap(outs[i], "a given output"));
    }
  }
  std::vector<Tensor> outputs = guarded(env, [&] {
    return invoke(op, in, {values.data(), paramCount}, given);
  });
  auto result = Napi::Array::New(env, outputs.size());
  for (size_t i = 0; i < outputs.size(); i++) {
    result.Set(uint32_t(i), TensorHandle::wrap(env, std::move(outputs[i])));
  }
  return result;
}

// kernelCalls(backend) -> number[] in the order of ops()
Napi::Value calls(const Napi::CallbackInfo& info) {
  const size_t count = opRegistry().size();
  if (!info[0].IsString()) {
    throwToJs(info.Env(), Error{AQ_ARG, "a backend must be a name, like 'cpu'"});
  }
  const std::string backend = info[0].As<Napi::String>().Utf8Value();
  auto list = Napi::Array::New(info.Env(), count);
  for (size_t i = 0; i < count; i++) {
    list.Set(uint32_t(i), Napi::Number::New(info.Env(), double(kernelCalls(backend, i))));
  }
  return list;
}

}  // namespace

void exportOps(Napi::Env env, Napi::Object exports) {
  exports.Set("ops", Napi::Function::New(env, ops, "ops"));
  exports.Set("invoke", Napi::Function::New(env, invokeOp, "invoke"));
  exports.Set("kernelCalls", Napi::Function::New(env, calls, "kernelCalls"));
}

}  // namespace aq
