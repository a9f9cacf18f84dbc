// error.h: the engine's exception and how it is raised. Text says op, what was expected, what came.
#pragma once
#include <cstdarg>
#include <string>

#include "native/abi/backend.h"

namespace aq {

struct Error {
  int32_t code;
  std::string message;
};

// Throws Error with a printf-style message.
[[noreturn]] __attribute__((format(printf, 2, 3))) void raise(int32_t code, const char* format,
                                                              ...);

// "AQ_SHAPE" for AQ_SHAPE, and so on.
const char* codeName(int32_t code);

}  // namespace aq
