// plain: the instruction set that the compiler assumes for the platform (SSE2 on x86-64).
#include "native/cpu/prelude.h"
#define AQ_LEVEL plain
#define AQ_LEVEL_PLAIN 1
#include "native/cpu/levels/level.inc"
