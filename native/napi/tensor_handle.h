// tensor_handle.h: the JavaScript object that holds a tensor. It has data and lifetime, no
// arithmetic. dispose() frees at once, recycle() also gives the handle back, which another tensor then
// may get: its owner must forget it. The garbage collector is only a net.
#pragma once
#include <optional>

#include "native/core/tensor.h"
#include "native/napi/napi_setup.h"

namespace aq {

class TensorHandle : public Napi::ObjectWrap<TensorHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object wrap(Napi::Env env, Tensor tensor);
  // Throws a JavaScript error if value is no live handle; `what` names it in the message.
  static const Tensor& unwrap(const Napi::Value& value, const char* what);

  explicit TensorHandle(const Napi::CallbackInfo& info);
  ~TensorHandle() override;

  // The tensor; nothing after dispose().
  const std::optional<Tensor>& held() const { return tensor_; }

 private:
  const Tensor& tensor(Napi::Env env) const;
  void release();

  Napi::Value shape(const Napi::CallbackInfo& info);
  Napi::Value dtype(const Napi::CallbackInfo& info);
  Napi::Value device(const Napi::CallbackInfo& info);
  Napi::Value disposed(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  void write(const Napi::CallbackInfo& info);
  Napi::Value view(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  void recycle(const Napi::CallbackInfo& info);

  std::optional<Tensor> tensor_;
  Napi::Env env_;
};

// [2, 3] -> Shape. Throws if it is no array of whole numbers >= 0.
Shape readShape(const Napi::Value& value);

}  // namespace aq
