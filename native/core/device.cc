#include "native/core/device.h"

#include <cstring>
#include <deque>
#include <mutex>

#include "native/core/error.h"
#include "native/core/op.h"

namespace aq {

namespace {

std::mutex registryMutex;
// A deque, so that a Backend never moves: queues keep pointers to them.
std::deque<Backend>& registry() {
  static auto* backends = new std::deque<Backend>;  // never destroyed: workers may outlive main
  return *backends;
}

int32_t deviceCount(const Backend& backend) { return backend.table->device_count(); }

std::string deviceName(const Backend& backend, int32_t index) {
  const std::string name = backend.table->name;
  return name == "cpu" ? name : name + ":" + std::to_string(index);
}

void check(int32_t status, const aq_error& err) {
  if (status != AQ_OK) throw Error{status, err.text};
}

}  // namespace

void registerBackend(const aq_backend* table) {
  if (table->abi_version != AQ_ABI_VERSION || table->struct_size != sizeof(aq_backend)) {
    raise(AQ_INTERNAL,
          "the %s addon has interface version %u (%u bytes), this engine needs %u (%zu bytes): "
          "build both from the same sources",
          table->name ? table->name : "unnamed", table->abi_version, table->struct_size,
          AQ_ABI_VERSION, sizeof(aq_backend));
  }
  const std::lock_guard<std::mutex> lock(registryMutex);
  for (const Backend& known : registry()) {
    if (std::strcmp(known.table->name, table->name) == 0) return;
  }
  const size_t ops = opRegistry().size();
  Backend backend{table, std::vector<aq_kernel>(ops, nullptr),
                  std::make_unique<std::atomic<uint64_t>[]>(ops)};
  for (uint32_t i = 0; i < table->row_count; i++) {
    const aq_kernel_row& row = table->rows[i];
    const int index = findOp(row.op);
    if (index < 0) {
      raise(AQ_INTERNAL, "the %s backend has a kernel for '%s', which is no op", table->name,
            row.op);
    }
    const OpSpec& spec = opRegistry()[size_t(index)];
    if (spec.paramsSize != row.params_size) {
      raise(AQ_INTERNAL,
            "the %s backend was built with %u bytes of parameters for '%s', the engine with %u: "
            "rebuild both",
            table->name, row.params_size, row.op, spec.paramsSize);
    }
    backend.kernels[size_t(index)] = row.run;
  }
  registry().push_back(std::move(backend));
}

std::vector<std::string> deviceNames() {
  const std::lock_guard<std::mutex> lock(registryMutex);
  std::vector<std::string> names;
  for (const Backend& backend : registry()) {
    for (int32_t i = 0; i < deviceCount(backend); i++) names.push_back(deviceName(backend, i));
  }
  return names;
}

uint64_t kernelCalls(const std::string& name, size_t op) {
  const std::lock_guard<std::mutex> lock(registryMutex);
  for (const Backend& backend : registry()) {
    if (name == backend.table->name) return backend.calls[op].load(std::memory_order_relaxed);
  }
  return 0;
}

std::shared_ptr<Queue> Queue::open(const std::string& device) {
  std::string known;
  {
    const std::lock_guard<std::mutex> lock(registryMutex);
    for (const Backend& backend : registry()) {
      for (int32_t i = 0; i < deviceCount(backend); i++) {
        const std::string name = deviceName(backend, i);
        known += (known.empty() ? "" : ", ") + name;
        if (name != device) continue;
        std::shared_ptr<Queue> queue(new Queue);
        queue->backend_ = &backend;
        queue->device_ = name;
        queue->index_ = i;
        aq_error err{};
        check(backend.table->queue_open(i, &queue->handle_, &err), err);
        return queue;
      }
    }
  }
  raise(AQ_DEVICE, "there is no device '%s' here; known devices: %s", device.c_str(),
        known.empty() ? "none" : known.c_str());
}

Queue::~Queue() {
  if (handle_) backend_->table->queue_close(handle_);
}

aq_device_info Queue::info() const {
  aq_device_info info{};
  aq_error err{};
  check(backend_->table->device_info(index_, &info, &err), err);
  return info;
}

aq_memory_info Queue::memory() const {
  aq_memory_info info{};
  aq_error err{};
  check(backend_->table->memory(index_, &info, &err), err);
  return info;
}

void Queue::sync() const {
  aq_error err{};
  check(backend_->table->queue_sync(handle_, &err), err);
}

void Queue::countCalls(size_t op, uint64_t count) const {
  if (isApart_) {
    apart_[op] += count;
  } else {
    backend_->calls[op].fetch_add(count, std::memory_order_relaxed);
  }
}

void Queue::countApart() {
  apart_.assign(opRegistry().size(), 0);
  isApart_ = true;
}

std::vector<OpCount> Queue::countedApart() {
  std::vector<OpCount> counted;
  for (size_t op = 0; op < apart_.size(); op++) {
    if (apart_[op] > 0) counted.push_back({op, apart_[op]});
  }
  apart_.clear();
  isApart_ = false;
  return counted;
}

void Queue::setOption(const std::string& name, const std::string& value) const {
  aq_error err{};
  check(backend_->table->set_option(handle_, name.c_str(), value.c_str(), &err), err);
}

}  // namespace aq
