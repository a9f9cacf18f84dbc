// errors.h: aq::Error becomes a JavaScript Error with .code; lib/native wraps it into AqError.
#pragma once
#include <new>

#include "native/core/error.h"
#include "native/napi/napi_setup.h"

namespace aq {

[[noreturn]] inline void throwToJs(Napi::Env env, const Error& error) {
  Napi::Error js = Napi::Error::New(env, error.message);
  js.Set("code", Napi::String::New(env, codeName(error.code)));
  throw js;
}

// An AQ_OOM error with the largest tensors that are alive, so that whoever reads it sees what takes
// the memory (live_tensors.cc).
Error withLargestTensors(Napi::Env env, const Error& error);

// Runs body; engine errors and allocation failures leave as JavaScript errors.
template <class Body>
auto guarded(Napi::Env env, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Error& error) {
    throwToJs(env, error.code == AQ_OOM ? withLargestTensors(env, error) : error);
  } catch (const std::bad_alloc&) {
    throwToJs(env, Error{AQ_OOM, "out of memory"});
  }
}

}  // namespace aq
