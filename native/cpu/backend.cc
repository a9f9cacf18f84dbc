// backend.cc: the CPU backend's table. Every kernel exists once per SIMD level; the level is chosen
// at first use, the best that the processor has or the one that AQ_SIMD names.
#include "native/cpu/backend.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "native/cpu/features.h"
#include "native/cpu/kernel_util.h"
#include "native/cpu/memory.h"
#include "native/cpu/parallel.h"
#include "native/cpu/system_memory.h"

struct aq_queue {};  // kernels run on the caller's thread and its pool: there is nothing to keep

namespace aq::cpu {

// Defined by the level files (kernels/table.h).
namespace plain {
const aq_kernel_row* kernelRows(uint32_t* count);
}
#if defined(__x86_64__)
namespace avx2 {
const aq_kernel_row* kernelRows(uint32_t* count);
}
namespace avx512 {
const aq_kernel_row* kernelRows(uint32_t* count);
}
#elif defined(__aarch64__)
namespace neon {
const aq_kernel_row* kernelRows(uint32_t* count);
}
#endif

namespace {

struct Level {
  const char* name;
  bool supported;
  const aq_kernel_row* (*rows)(uint32_t* count);  // null: not built for this architecture
};

struct Choice {
  Level level;
  aq_error error;  // code AQ_OK, or why AQ_SIMD cannot be followed; queue_open reports it
};

Choice choose() {
#if defined(__x86_64__)
  const Features features = readFeatures();
  const Level levels[] = {{"plain", true, plain::kernelRows},
                          {"avx2", features.avx2, avx2::kernelRows},
                          {"avx512", features.avx512, avx512::kernelRows},
                          {"neon", false, nullptr}};
#elif defined(__aarch64__)
  const Level levels[] = {{"plain", true, plain::kernelRows},
                          {"avx2", false, nullptr},
                          {"avx512", false, nullptr},
                          {"neon", true, neon::kernelRows}};
#else
  const Level levels[] = {{"plain", true, plain::kernelRows},
                          {"avx2", false, nullptr},
                          {"avx512", false, nullptr},
                          {"neon", false, nullptr}};
#endif
  Choice choice{levels[0], {AQ_OK, {}}};
  char available[64] = "";
  for (const Level& level : levels) {
    if (!level.supported) continue;
    choice.level = level;
    if (*available) std::strcat(available, ", ");
    std::strcat(available, level.name);
  }
  const char* wanted = std::getenv("AQ_SIMD");
  if (!wanted || !*wanted) return choice;
  for (const Level& level : levels) {
    if (std::strcmp(level.name, wanted) != 0) continue;
    if (level.supported) {
      choice.level = level;
    } else {
      fail(&choice.error, AQ_ARG,
           "AQ_SIMD is \"%s\", which this processor does not have; it has %s. Correct the variable "
           "or unset it",
           wanted, available);
    }
    return choice;
  }
  fail(&choice.error, AQ_ARG,
       "AQ_SIMD is \"%.40s\", expected plain, avx2, avx512 or neon; this processor has %s. Correct "
       "the variable or unset it",
       wanted, available);
  return choice;
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

// The processor's name as the system tells it, or the architecture (most Arm boards have no name).
void processorName(char* name, size_t size) {
#if defined(__x86_64__)
  std::snprintf(name, size, "x86-64 processor");
#elif defined(__aarch64__)
  std::snprintf(name, size, "64-bit Arm processor");
#else
  std::snprintf(name, size, "processor");
#endif
#if defined(__linux__)
  std::FILE* file = std::fopen("/proc/cpuinfo", "re");
  if (!file) return;
  char line[256];
  while (std::fgets(line, sizeof line, file)) {
    if (std::strncmp(line, "model name", 10) != 0) continue;
    const char* value = std::strchr(line, ':');
    if (!value) continue;
    value += std::strspn(value, ": \t");
    const int length = int(std::strcspn(value, "\n"));
    if (length > 0) std::snprintf(name, size, "%.*s", length, value);
    break;
  }
  std::fclose(file);
#endif
}

int32_t checkDevice(int32_t device, aq_error* err) {
  if (device == 0) return AQ_OK;
  return fail(err, AQ_DEVICE, "cpu:%d does not exist: the CPU is one device, cpu:0", device);
}

int32_t deviceCount() { return 1; }

int32_t deviceInfo(int32_t device, aq_device_info* info, aq_error* err) {
  if (const int32_t code = checkDevice(device, err)) return code;
  *info = {};
  processorName(info->name, sizeof info->name);
  const int threads = threadCount();
  std::snprintf(info->detail, sizeof info->detail, "%s, %d thread%s", levelName(), threads,
                threads == 1 ? "" : "s");
  info->total_bytes = machineMemory();
  return AQ_OK;
}

aq_queue theQueue;

int32_t queueOpen(int32_t device, aq_queue** queue, aq_error* err) {
  *queue = nullptr;
  if (const int32_t code = checkDevice(device, err)) return code;
  if (chosen().error.code != AQ_OK) {
    *err = chosen().error;
    return err->code;
  }
  if (const int32_t code = checkMemoryLimit(err)) return code;
  *queue = &theQueue;
  return AQ_OK;
}

void queueClose(aq_queue*) {}

int32_t queueSync(aq_queue*, aq_error*) { return AQ_OK; }

int32_t allocate(aq_queue*, uint64_t bytes, void** data, aq_error* err) {
  return allocateBlock(bytes, data, err);
}

void release(aq_queue*, void* data, uint64_t bytes) { releaseBlock(data, bytes); }

// memmove: the engine may copy between overlapping ranges of one tensor.
int32_t copyBytes(aq_queue*, void* dst, const void* src, uint64_t bytes, int32_t, aq_error*) {
  if (bytes > 0) std::memmove(dst, src, bytes);
  return AQ_OK;
}

int32_t memory(int32_t device, aq_memory_info* info, aq_error* err) {
  if (const int32_t code = checkDevice(device, err)) return code;
  *info = memoryInfo();
  return AQ_OK;
}

int32_t setOption(aq_queue*, const char* name, const char* value, aq_error* err) {
  if (std::strcmp(name, "precision") == 0 && std::strcmp(value, "f32") == 0) return AQ_OK;
  return fail(err, AQ_ARG,
              "cpu: there is no option '%s' with the value '%s' here; precision is f32.", name,
              value);
}

aq_backend makeBackend() {
  aq_backend backend{};
  backend.abi_version = AQ_ABI_VERSION;
  backend.struct_size = sizeof(aq_backend);
  backend.name = "cpu";
  backend.device_count = deviceCount;
  backend.device_info = deviceInfo;
  backend.queue_open = queueOpen;
  backend.queue_close = queueClose;
  backend.queue_sync = queueSync;
  backend.alloc = allocate;
  backend.release = release;
  backend.copy = copyBytes;
  backend.memory = memory;
  backend.set_option = setOption;
  backend.rows = chosen().level.rows(&backend.row_count);
  // No recording: a call of a kernel costs little beside what it computes.
  return backend;
}

}  // namespace

const char* levelName() noexcept { return chosen().level.name; }

}  // namespace aq::cpu

const aq_backend* aq_cpu_backend() noexcept {
  static const aq_backend backend = aq::cpu::makeBackend();
  return &backend;
}
