// copy_threads.h: a few threads that copy host memory together. One core copies 6 to 10 GB/s on
// servers, a fraction of what the link to the device takes.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace aq::cuda {

class CopyThreads {
 public:
  ~CopyThreads();
  // As memcpy. The threads start with the first copy that is large enough for more than one.
  void copy(void* to, const void* from, uint64_t bytes);

 private:
  void start();
  void work();
  void copySlices();

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  bool isStarted_ = false, isEnding_ = false;
  uint64_t round_ = 0;  // copies so far
  int busy_ = 0;        // threads that work on this one
  // The copy under way, in slices that are taken one by one.
  char* to_ = nullptr;
  const char* from_ = nullptr;
  uint64_t bytes_ = 0;
  std::atomic<uint64_t> next_{0};
};

}  // namespace aq::cuda
