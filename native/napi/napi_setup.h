// napi_setup.h: the only include of napi.h. binding.gyp sets NAPI_VERSION and C++ exceptions.
#pragma once

// A worker that is being terminated takes no more exceptions: throwing one then must not end the
// whole process.
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#include <napi.h>
