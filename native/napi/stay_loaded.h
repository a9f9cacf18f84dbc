// stay_loaded.h: the addon stays in memory once loaded. Node.js unloads it with the last environment
// that uses it (a worker's exit), but the threads of the engine run on. On Linux the linker's nodelete
// says so (binding.gyp); elsewhere a handle that is never closed does.
#pragma once
#if defined(_WIN32)
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace aq {

inline void stayLoaded() noexcept {
#if defined(_WIN32)
  HMODULE self;
  GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
                     reinterpret_cast<LPCWSTR>(&stayLoaded), &self);
#elif defined(__APPLE__)
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&stayLoaded), &self)) dlopen(self.dli_fname, RTLD_LAZY);
#endif
}

}  // namespace aq
