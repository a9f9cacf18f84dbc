// op_api.h: ops(), invoke(), opCalls(): the arithmetic that JavaScript sees.
#pragma once
#include "native/napi/napi_setup.h"

namespace aq {

void exportOps(Napi::Env env, Napi::Object exports);

}  // namespace aq
