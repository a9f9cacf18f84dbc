#include "native/napi/device_api.h"

#include <algorithm>
#include <vector>

#include "native/abi/type_tag.h"
#include "native/core/reading.h"
#include "native/core/tensor.h"
#include "native/cpu/backend.h"
#include "native/cpu/parallel.h"
#include "native/napi/env_state.h"
#include "native/napi/errors.h"
#include "native/napi/tensor_handle.h"

namespace aq {

namespace {

std::string readDevice(const Napi::CallbackInfo& info, size_t i) {
  if (!info[i].IsString())
    throwToJs(info.Env(), Error{AQ_ARG, "a device must be a name, like 'cpu'"});
  return info[i].As<Napi::String>().Utf8Value();
}

// empty(device, dtype, shape) -> TensorHandle, contents undefined
Napi::Value empty(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string device = readDevice(info, 0);
  const int32_t dtype = info[1].As<Napi::Number>().Int32Value();
  const Shape shape = readShape(info[2]);
  return guarded(env, [&] {
    return TensorHandle::wrap(env, Tensor::empty(EnvState::of(env).queue(device), dtype, shape));
  });
}

Napi::Value devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto list = Napi::Array::New(env);
    for (const std::string& name : deviceNames()) list.Set(list.Length(), name);
    return list;
  });
}

// deviceInfo(name) -> {name, detail, totalBytes}
Napi::Value deviceInfo(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string device = readDevice(info, 0);
  const aq_device_info got = guarded(env, [&] { return EnvState::of(env).queue(device)->info(); });
  auto result = Napi::Object::New(env);
  result.Set("name", got.name);
  result.Set("detail", got.detail);
  result.Set("totalBytes", double(got.total_bytes));
  return result;
}

// memory(name) -> {usedBytes, cachedBytes, peakBytes}
Napi::Value memory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string device = readDevice(info, 0);
  const aq_memory_info got =
      guarded(env, [&] { return EnvState::of(env).queue(device)->memory(); });
  auto result = Napi::Object::New(env);
  result.Set("usedBytes", double(got.used_bytes));
  result.Set("cachedBytes", double(got.cached_bytes));
  result.Set("peakBytes", double(got.peak_bytes));
  return result;
}

// Waits on a thread of its own, so that the event loop goes on.
class SyncWorker : public Napi::AsyncWorker {
 public:
  SyncWorker(Napi::Env env, std::shared_ptr<aq::Queue> queue)
      : Napi::AsyncWorker(env), deferred_(env), queue_(std::move(queue)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    try {
      queue_->sync();
    } catch (const Error& error) {
      failure_ = error;
      SetError(error.message);
    }
  }
  void OnOK() override { deferred_.Resolve(Env().Undefined()); }
  void OnError(const Napi::Error& error) override {
    error.Set("code", Napi::String::New(Env(), codeName(failure_.code)));
    deferred_.Reject(error.Value());
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<aq::Queue> queue_;
  Error failure_{AQ_INTERNAL, ""};
};

Napi::Value synchronize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string device = readDevice(info, 0);
  const auto queue = guarded(env, [&] { return EnvState::of(env).queue(device); });
  auto* worker = new SyncWorker(env, queue);  // deletes itself when done
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

// Fills a typed array when the device gets there, waiting on a thread of its own.
class ReadWorker : public Napi::AsyncWorker {
 public:
  ReadWorker(const Napi::TypedArray& target, const Tensor& source)
      : Napi::AsyncWorker(target.Env()),
        deferred_(target.Env()),
        target_(Napi::Persistent(target)),
        reading_(source),
        bytes_(size_t(source.bytes())) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    try {
      reading_.finish(bytes_.data());
    } catch (const Error& error) {
      failure_ = error;
      SetError(error.message);
    }
  }
  void OnOK() override {
    const Napi::TypedArray target = target_.Value();
    char* data = static_cast<char*>(target.ArrayBuffer().Data()) + target.ByteOffset();
    std::copy(bytes_.begin(), bytes_.end(), data);
    deferred_.Resolve(target);
  }
  void OnError(const Napi::Error& error) override {
    error.Set("code", Napi::String::New(Env(), codeName(failure_.code)));
    deferred_.Reject(error.Value());
  }

 private:
  Napi::Promise::Deferred deferred_;
  Napi::Reference<Napi::TypedArray> target_;
  Reading reading_;
  std::vector<char> bytes_;
  Error failure_{AQ_INTERNAL, ""};
};

// readLater(tensor, target) -> Promise: the contents as of this call, whatever is enqueued behind it.
Napi::Value readLater(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Tensor& source = TensorHandle::unwrap(info[0], "the tensor to read");
  if (!info[1].IsTypedArray()) {
    throwToJs(env, Error{AQ_ARG, "readLater needs a typed array to fill"});
  }
  const auto target = info[1].As<Napi::TypedArray>();
  if (int64_t(target.ByteLength()) != source.bytes()) {
    throwToJs(env, Error{AQ_ARG, "readLater needs a typed array of the tensor's size"});
  }
  auto* worker = guarded(env, [&] { return new ReadWorker(target, source); });
  const Napi::Promise promise = worker->promise();
  worker->Queue();  // deletes itself when done
  return promise;
}

// setOption(device, name, value)
void setOption(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string device = readDevice(info, 0);
  if (!info[1].IsString() || !info[2].IsString()) {
    throwToJs(env, Error{AQ_ARG, "an option of a device is a name and a value"});
  }
  const std::string name = info[1].As<Napi::String>().Utf8Value();
  const std::string value = info[2].As<Napi::String>().Utf8Value();
  guarded(env, [&] { EnvState::of(env).queue(device)->setOption(name, value); });
}

Napi::Value threads(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), cpu::threadCount());
}

void setThreads(const Napi::CallbackInfo& info) {
  const double n = info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : 0;
  if (!(n >= 1 && n <= 1024) || n != double(int(n))) {
    throwToJs(info.Env(), Error{AQ_ARG, "the number of threads must be from 1 to 1024"});
  }
  cpu::setThreadCount(int(n));
}

Napi::Value liveTensors(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(EnvState::of(info.Env()).liveTensors));
}

// registerBackend(external): the table of another addon.
void takeBackend(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsExternal()) throwToJs(env, Error{AQ_ARG, "registerBackend needs a backend"});
  bool tagged = false;
  const napi_type_tag tag = {AQ_BACKEND_TAG_LOWER, AQ_BACKEND_TAG_UPPER};
  if (napi_check_object_type_tag(env, info[0], &tag, &tagged) != napi_ok || !tagged) {
    throwToJs(env, Error{AQ_ARG, "this is not a backend of aq-native"});
  }
  const auto* table = static_cast<const aq_backend*>(info[0].As<Napi::External<void>>().Data());
  guarded(env, [&] { registerBackend(table); });
}

}  // namespace

void exportDevices(Napi::Env env, Napi::Object exports) {
  exports.Set("empty", Napi::Function::New(env, empty, "empty"));
  exports.Set("devices", Napi::Function::New(env, devices, "devices"));
  exports.Set("deviceInfo", Napi::Function::New(env, deviceInfo, "deviceInfo"));
  exports.Set("memory", Napi::Function::New(env, memory, "memory"));
  exports.Set("synchronize", Napi::Function::New(env, synchronize, "synchronize"));
  exports.Set("readLater", Napi::Function::New(env, readLater, "readLater"));
  exports.Set("setOption", Napi::Function::New(env, setOption, "setOption"));
  exports.Set("threads", Napi::Function::New(env, threads, "threads"));
  exports.Set("setThreads", Napi::Function::New(env, setThreads, "setThreads"));
  exports.Set("liveTensors", Napi::Function::New(env, liveTensors, "liveTensors"));
  exports.Set("registerBackend", Napi::Function::New(env, takeBackend, "registerBackend"));
}

}  // namespace aq
