// device_api.h: devices, memory, threads, and taking in the CUDA addon's table.
#pragma once
#include "native/napi/napi_setup.h"

namespace aq {

void exportDevices(Napi::Env env, Napi::Object exports);

}  // namespace aq
