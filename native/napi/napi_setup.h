// napi_setup.h: the only include of napi.h. binding.gyp sets NAPI_VERSION and C++ exceptions.
#pragma once
#include <napi.h>
