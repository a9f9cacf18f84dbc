// neon: 128-bit vectors of 64-bit Arm, which every such processor has.
#if defined(__aarch64__)
#include "native/cpu/prelude.h"
#define AQ_LEVEL neon
#define AQ_LEVEL_NEON 1
#include "native/cpu/levels/level.inc"
#endif
