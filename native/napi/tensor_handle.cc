#include "native/napi/tensor_handle.h"

#include <cmath>

#include "native/napi/env_state.h"
#include "native/napi/errors.h"

namespace aq {

namespace {
int64_t readWhole(const Napi::Value& value, const char* what) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0 && number <= 9007199254740991.0) || number != std::floor(number)) {
    throwToJs(value.Env(), Error{AQ_ARG, std::string(what) + " must be a whole number >= 0"});
  }
  return int64_t(number);
}
}  // namespace

Shape readShape(const Napi::Value& value) {
  if (!value.IsArray()) throwToJs(value.Env(), Error{AQ_ARG, "a shape must be an array"});
  const auto array = value.As<Napi::Array>();
  Shape shape(array.Length());
  for (uint32_t i = 0; i < array.Length(); i++)
    shape[i] = readWhole(array.Get(i), "a size of a shape");
  return shape;
}

Napi::Function TensorHandle::define(Napi::Env env) {
  return DefineClass(env, "TensorHandle",
                     {
                         InstanceAccessor<&TensorHandle::shape>("shape"),
                         InstanceAccessor<&TensorHandle::dtype>("dtype"),
                         InstanceAccessor<&TensorHandle::device>("device"),
                         InstanceAccessor<&TensorHandle::disposed>("disposed"),
                         InstanceMethod<&TensorHandle::read>("read"),
                         InstanceMethod<&TensorHandle::write>("write"),
                         InstanceMethod<&TensorHandle::view>("view"),
                         InstanceMethod<&TensorHandle::dispose>("dispose"),
                         InstanceMethod<&TensorHandle::recycle>("recycle"),
                     });
}

TensorHandle::TensorHandle(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<TensorHandle>(info), env_(info.Env()) {
  EnvState& state = EnvState::of(env_);
  if (!state.incoming) {
    throwToJs(env_, Error{AQ_ARG, "tensors are made by the engine, not by this constructor"});
  }
  tensor_ = std::move(*state.incoming);
  state.incoming = nullptr;
  state.handles.insert(this);
  state.liveTensors++;
}

TensorHandle::~TensorHandle() {
  release();
  if (auto* state = env_.GetInstanceData<EnvState>()) state->handles.erase(this);
}

void TensorHandle::release() {
  if (!tensor_) return;
  tensor_.reset();
  // At environment shutdown the instance data may already be gone.
  if (auto* state = env_.GetInstanceData<EnvState>()) state->liveTensors--;
}

Napi::Object TensorHandle::wrap(Napi::Env env, Tensor tensor) {
  EnvState& state = EnvState::of(env);
  if (!state.spare.empty()) {
    TensorHandle* handle = state.spare.back();
    state.spare.pop_back();
    const Napi::Object object = handle->Value();
    handle->Unref();
    handle->tensor_ = std::move(tensor);
    state.liveTensors++;
    return object;
  }
  // For this call alone, however it ends: the constructor must not find a tensor that is gone.
  struct Incoming {
    EnvState& env;
    Incoming(EnvState& of, Tensor* held) : env(of) { env.incoming = held; }
    ~Incoming() { env.incoming = nullptr; }
  } incoming(state, &tensor);
  return state.tensorConstructor.New({});
}

const Tensor& TensorHandle::unwrap(const Napi::Value& value, const char* what) {
  void* data = nullptr;
  const bool isWrapped = value.IsObject() && napi_unwrap(value.Env(), value, &data) == napi_ok;
  const auto* handle = static_cast<const TensorHandle*>(data);
  if (!isWrapped || !EnvState::of(value.Env()).handles.contains(handle)) {
    throwToJs(value.Env(), Error{AQ_ARG, std::string(what) + " is not a tensor"});
  }
  if (!handle->tensor_) {
    throwToJs(value.Env(), Error{AQ_DISPOSED, std::string(what) + " was used after dispose()"});
  }
  return *handle->tensor_;
}

const Tensor& TensorHandle::tensor(Napi::Env env) const {
  if (!tensor_) throwToJs(env, Error{AQ_DISPOSED, "the tensor was used after dispose()"});
  return *tensor_;
}

Napi::Value TensorHandle::shape(const Napi::CallbackInfo& info) {
  const Shape& shape = tensor(info.Env()).shape;
  auto array = Napi::Array::New(info.Env(), shape.size());
  for (size_t i = 0; i < shape.size(); i++) {
    array.Set(uint32_t(i), Napi::Number::New(info.Env(), double(shape[i])));
  }
  return array;
}

Napi::Value TensorHandle::dtype(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), tensor(info.Env()).dtype);
}

Napi::Value TensorHandle::device(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), tensor(info.Env()).queue().device());
}

Napi::Value TensorHandle::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !tensor_);
}

// read(target: ArrayBufferView, byteOffset): fills the whole view from the tensor's bytes there.
Napi::Value TensorHandle::read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Tensor& source = tensor(env);
  if (!info[0].IsTypedArray()) throwToJs(env, Error{AQ_ARG, "read needs a typed array to fill"});
  auto target = info[0].As<Napi::TypedArray>();
  char* data = static_cast<char*>(target.ArrayBuffer().Data()) + target.ByteOffset();
  const int64_t offset = info.Length() > 1 ? readWhole(info[1], "the byte offset") : 0;
  guarded(env, [&] { source.read(data, offset, int64_t(target.ByteLength())); });
  return info[0];
}

// write(source: ArrayBufferView, byteOffset)
void TensorHandle::write(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Tensor& target = tensor(env);
  if (!info[0].IsTypedArray()) throwToJs(env, Error{AQ_ARG, "write needs a typed array"});
  auto source = info[0].As<Napi::TypedArray>();
  const char* data = static_cast<char*>(source.ArrayBuffer().Data()) + source.ByteOffset();
  const int64_t offset = info.Length() > 1 ? readWhole(info[1], "the byte offset") : 0;
  guarded(env, [&] { target.write(data, offset, int64_t(source.ByteLength())); });
}

Napi::Value TensorHandle::view(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int64_t offset = readWhole(info[0], "the offset of a view");
  return guarded(env, [&] { return wrap(env, tensor(env).slice(offset, readShape(info[1]))); });
}

void TensorHandle::dispose(const Napi::CallbackInfo&) { release(); }

void TensorHandle::recycle(const Napi::CallbackInfo& info) {
  if (!tensor_) return;
  release();
  EnvState& state = EnvState::of(info.Env());
  if (state.spare.size() >= EnvState::kMostSpare) return;
  Ref();
  state.spare.push_back(this);
}

}  // namespace aq
