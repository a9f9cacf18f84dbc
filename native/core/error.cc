#include "native/core/error.h"

#include <cstdio>

namespace aq {

void raise(int32_t code, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Error{code, text};
}

const char* codeName(int32_t code) {
  switch (code) {
    case AQ_SHAPE:
      return "AQ_SHAPE";
    case AQ_DTYPE:
      return "AQ_DTYPE";
    case AQ_ARG:
      return "AQ_ARG";
    case AQ_DEVICE:
      return "AQ_DEVICE";
    case AQ_OOM:
      return "AQ_OOM";
    case AQ_UNSUPPORTED:
      return "AQ_UNSUPPORTED";
    case AQ_NUMERIC:
      return "AQ_NUMERIC";
    case AQ_CUDA:
      return "AQ_CUDA";
    case AQ_DISPOSED:
      return "AQ_DISPOSED";
    default:
      return "AQ_INTERNAL";
  }
}

}  // namespace aq
