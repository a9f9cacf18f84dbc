#include "native/core/reading.h"

#include <algorithm>

#include "native/core/error.h"

namespace aq {

Reading::Reading(const Tensor& tensor) : queue_(tensor.buffer->queue()) {
  const aq_backend& table = *queue_->backend().table;
  const int64_t bytes = tensor.bytes();
  if (bytes == 0) return;
  if (!table.read_start) {
    bytes_.resize(size_t(bytes));
    tensor.read(bytes_.data(), 0, bytes);
    return;
  }
  aq_error err{};
  const int32_t status =
      table.read_start(queue_->handle(), tensor.view().data, uint64_t(bytes), &reading_, &err);
  if (status != AQ_OK) throw Error{status, err.text};
}

Reading::~Reading() {
  aq_error ignored{};
  if (reading_) queue_->backend().table->read_finish(reading_, nullptr, &ignored);
}

void Reading::finish(void* host) {
  std::copy(bytes_.begin(), bytes_.end(), static_cast<char*>(host));
  if (!reading_) return;
  aq_reading* const reading = reading_;
  reading_ = nullptr;
  aq_error err{};
  const int32_t status = queue_->backend().table->read_finish(reading, host, &err);
  if (status != AQ_OK) throw Error{status, err.text};
}

}  // namespace aq
