// backend.h: the only contract between the engine (native/core) and a backend (native/cpu,
// native/cuda). Plain C data: no exceptions, no C++ types and no ownership cross it, so the CUDA
// addon can hand its table to the CPU addon through a type-tagged External.
//
// Rules, both sides rely on them:
//  * Views are row-major and contiguous; an absent optional input has data == NULL and rank 0.
//  * The core has checked dtypes, shapes and parameters before a kernel runs; outputs are allocated.
//  * A kernel enqueues on its queue and returns; it writes only to outputs and to inputs that its
//    op declares mutable.
//  * Every function returns AQ_OK or an error code and then has filled *err. Nothing throws.
//  * What a kernel finds out only on the device (a singular matrix, an id outside its table) is
//    reported by the next queue_sync or copy to the host, which wait for the device anyway.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_ABI_VERSION 3u
#define AQ_MAX_RANK 6

typedef enum {
  AQ_F64 = 0,
  AQ_F32 = 1,
  AQ_BF16 = 2,
  AQ_F16 = 3,
  AQ_I32 = 4,
  AQ_I8 = 5,
  AQ_U8 = 6,
  AQ_DTYPE_COUNT = 7
} aq_dtype;

typedef enum {
  AQ_OK = 0,
  AQ_SHAPE = 1,        // sizes do not fit together
  AQ_DTYPE = 2,        // an element type the op does not take
  AQ_ARG = 3,          // a parameter outside its range
  AQ_DEVICE = 4,       // no such device, or tensors on different devices
  AQ_OOM = 5,          // out of memory
  AQ_UNSUPPORTED = 6,  // the backend has no kernel for this op
  AQ_NUMERIC = 7,      // singular matrix, non-finite where finite is required
  AQ_CUDA = 8,         // a CUDA call failed
  AQ_DISPOSED = 9,     // a tensor was used after dispose()
  AQ_INTERNAL = 10     // a broken promise of ours
} aq_code;

typedef struct {
  int32_t code;
  char text[508];
} aq_error;

typedef struct {
  void* data;
  int32_t dtype;  // aq_dtype
  int32_t rank;
  int64_t dim[AQ_MAX_RANK];
} aq_view;

typedef struct aq_queue aq_queue;      // a CUDA stream, or nothing much on the CPU
typedef struct aq_reading aq_reading;  // a copy to the host that is under way
typedef struct aq_graph aq_graph;      // a recorded sequence of kernels, a CUDA graph

typedef int32_t (*aq_kernel)(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out,
                             int32_t n_out, const void* params, aq_error* err);

typedef struct {
  const char* op;        // name of the op in the core's registry
  uint32_t params_size;  // sizeof the op's struct in params.h: a stale build is refused
  aq_kernel run;
} aq_kernel_row;

typedef struct {
  char name[128];    // "AMD EPYC", "NVIDIA H100 80GB HBM3"
  char detail[128];  // "avx512, 2 threads", "compute 9.0, driver 13.0"
  uint64_t total_bytes;
} aq_device_info;

typedef struct {
  uint64_t used_bytes;    // in live tensors
  uint64_t cached_bytes;  // kept by the allocator for reuse
  uint64_t peak_bytes;    // highest used_bytes so far
} aq_memory_info;

typedef enum { AQ_HOST_TO_DEVICE = 0, AQ_DEVICE_TO_HOST = 1, AQ_DEVICE_TO_DEVICE = 2 } aq_copy_kind;

typedef struct {
  uint32_t abi_version;  // AQ_ABI_VERSION
  uint32_t struct_size;  // sizeof(aq_backend)
  const char* name;      // "cpu", "cuda"
  int32_t (*device_count)(void);
  int32_t (*device_info)(int32_t device, aq_device_info* info, aq_error* err);
  int32_t (*queue_open)(int32_t device, aq_queue** queue, aq_error* err);
  void (*queue_close)(aq_queue* queue);
  int32_t (*queue_sync)(aq_queue* queue, aq_error* err);
  int32_t (*alloc)(aq_queue* queue, uint64_t bytes, void** data, aq_error* err);
  void (*release)(aq_queue* queue, void* data, uint64_t bytes);
  int32_t (*copy)(aq_queue* queue, void* dst, const void* src, uint64_t bytes, int32_t kind,
                  aq_error* err);
  // A copy to the host that is not waited for: read_start enqueues it, read_finish (on any thread) waits
  // for it and nothing behind it, fills dst unless that is null, and ends the reading, also when it
  // fails. Both are null where copies are done at once.
  int32_t (*read_start)(aq_queue* queue, const void* src, uint64_t bytes, aq_reading** reading,
                        aq_error* err);
  int32_t (*read_finish)(aq_reading* reading, void* dst, aq_error* err);
  int32_t (*memory)(int32_t device, aq_memory_info* info, aq_error* err);
  // "precision": of the matrix products of f32 tensors, "f32", "bf16" or "f16", accumulated in f32.
  int32_t (*set_option)(aq_queue* queue, const char* name, const char* value, aq_error* err);
  const aq_kernel_row* rows;
  uint32_t row_count;
  uint32_t pad;
  // Recording, all four null where a backend has none. From capture_begin to capture_end, kernels
  // and copies within the device that are given to the queue are not run but recorded; whatever
  // would have to wait or to read host memory fails with AQ_UNSUPPORTED and records nothing. Memory
  // that is taken meanwhile belongs to the graph: `release` is called for it as usual and in any
  // order, but nothing else gets it before graph_free. What is released meanwhile and was taken
  // before is held until graph_free too. The caller keeps alive all else that the kernels touch.
  // begin waits for the queue. end with graph NULL forgets what was recorded; so does an end that
  // fails. The queue takes ordinary work again afterwards in either case.
  int32_t (*capture_begin)(aq_queue* queue, aq_error* err);
  int32_t (*capture_end)(aq_queue* queue, aq_graph** graph, aq_error* err);
  // Enqueues all of it once more; with the same addresses, so with what memory holds by then.
  int32_t (*graph_launch)(aq_queue* queue, aq_graph* graph, aq_error* err);
  void (*graph_free)(aq_queue* queue, aq_graph* graph);  // before its queue is closed
} aq_backend;

#ifdef __cplusplus
}
#endif
