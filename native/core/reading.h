// reading.h: a copy of a tensor to the host that goes on while its queue is given more to do.
#pragma once
#include <memory>
#include <vector>

#include "native/core/tensor.h"

namespace aq {

class Reading {
 public:
  // Enqueues the copy of what the tensor holds now. Raises what the backend raises.
  explicit Reading(const Tensor& tensor);
  ~Reading();  // waits where finish was not called
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  // Waits, on any thread, and fills `host` with the tensor's bytes. Once.
  void finish(void* host);

 private:
  std::shared_ptr<Queue> queue_;
  aq_reading* reading_ = nullptr;
  std::vector<char> bytes_;  // of a backend that copies at once
};

}  // namespace aq
