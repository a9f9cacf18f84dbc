// device.h: the registry of backends, and queues opened on their devices.
//
// Threads: the registry is process-wide and locked; a Queue belongs to the JavaScript environment
// that opened it, and lives until its last buffer is released.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "native/abi/backend.h"

namespace aq {

// A backend whose kernels are resolved: kernels[op index] is null where it has none.
struct Backend {
  const aq_backend* table;
  std::vector<aq_kernel> kernels;
  std::unique_ptr<std::atomic<uint64_t>[]> calls;  // [op index]: how often each kernel ran
};

// Checks ABI version, struct size and every row against the op registry; raises AQ_INTERNAL with
// both numbers on a mismatch. Registering the same name twice is harmless.
void registerBackend(const aq_backend* table);

// "cpu", "cuda:0", ... in the order of registration.
std::vector<std::string> deviceNames();

// Calls of the kernel of op number `op` so far in this process, by the backend's name ("cpu"), over
// all environments and devices. 0 for a backend that is not here.
uint64_t kernelCalls(const std::string& backend, size_t op);

// Calls of the kernel of one op.
struct OpCount {
  size_t op;
  uint64_t count;
};

class Queue {
 public:
  // Opens a queue on a device by name. Raises AQ_DEVICE with the names there are.
  static std::shared_ptr<Queue> open(const std::string& device);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  const Backend& backend() const { return *backend_; }
  const std::string& device() const { return device_; }
  aq_queue* handle() const { return handle_; }
  aq_device_info info() const;
  aq_memory_info memory() const;
  void sync() const;
  // An option of the backend (backend.h). Raises AQ_ARG for an unknown name or value.
  void setOption(const std::string& name, const std::string& value) const;

  // Counts calls of a kernel for kernelCalls, or, between the two calls below, apart: those of a
  // recording count when it runs.
  void countCalls(size_t op, uint64_t count) const;
  void countApart();
  std::vector<OpCount> countedApart();

 private:
  Queue() = default;
  const Backend* backend_ = nullptr;
  std::string device_;
  int32_t index_ = 0;
  aq_queue* handle_ = nullptr;
  bool isApart_ = false;
  mutable std::vector<uint64_t> apart_;  // [op index] while isApart_
};

}  // namespace aq
