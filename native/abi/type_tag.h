// type_tag.h: the mark that the CUDA addon puts on the External that holds its aq_backend, and that
// the CPU addon looks for before it reads the pointer. Any other External is refused instead of
// being taken for a table of functions. Random, and new with every change of backend.h's layout.
#pragma once
#include <stdint.h>

#define AQ_BACKEND_TAG_LOWER UINT64_C(0x7b519d7180a5e8cc)
#define AQ_BACKEND_TAG_UPPER UINT64_C(0xfdb8bb646e7d2de9)
