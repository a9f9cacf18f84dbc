// addon.cc: the module that Node.js loads. It owns nothing and computes nothing: its exports are
// `abi`, the version of backend.h it was built with, and `backend`, a type-tagged External over the
// table of functions, which the CPU addon takes. Plain node_api.h, so that no C++ wrapper has to be
// built twice.
#include <node_api.h>

#include "native/abi/backend.h"
#include "native/abi/type_tag.h"

namespace aq::cuda {
const aq_backend* backend();
}

namespace {

// Throws a JavaScript error unless one is pending, and gives up the module.
napi_value refuse(napi_env env, const char* step) {
  bool isPending = false;
  napi_is_exception_pending(env, &isPending);
  if (!isPending) napi_throw_error(env, "AQ_ADDON", step);
  return nullptr;
}

}  // namespace

NAPI_MODULE_INIT() {
  static const napi_type_tag tag = {AQ_BACKEND_TAG_LOWER, AQ_BACKEND_TAG_UPPER};
  napi_value version, external;
  if (napi_create_uint32(env, AQ_ABI_VERSION, &version) != napi_ok ||
      napi_set_named_property(env, exports, "abi", version) != napi_ok) {
    return refuse(env, "The CUDA addon could not export its ABI version.");
  }
  // The table is static data of this library, which is never unloaded: no finalizer is needed.
  void* table = const_cast<aq_backend*>(aq::cuda::backend());
  if (napi_create_external(env, table, nullptr, nullptr, &external) != napi_ok ||
      napi_type_tag_object(env, external, &tag) != napi_ok ||
      napi_set_named_property(env, exports, "backend", external) != napi_ok) {
    return refuse(env, "The CUDA addon could not export its table of functions.");
  }
  return exports;
}
