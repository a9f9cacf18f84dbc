// copy_threads.cu: see copy_threads.h.
#include "native/cuda/copy_threads.h"

#include <algorithm>
#include <cstring>
#include <exception>

namespace aq::cuda {

namespace {
constexpr uint64_t kSliceBytes = uint64_t(256) << 10;
// With the caller's; on the machines measured more gain nothing.
constexpr unsigned kMostThreads = 4;
}  // namespace

void CopyThreads::start() {
  isStarted_ = true;
  const unsigned all = std::min(kMostThreads, std::max(1u, std::thread::hardware_concurrency()));
  try {
    while (threads_.size() + 1 < all) threads_.emplace_back([this] { work(); });
  } catch (const std::exception&) {
    // Those that there are do it.
  }
}

CopyThreads::~CopyThreads() {
  {
    const std::lock_guard lock(mutex_);
    isEnding_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void CopyThreads::copySlices() {
  uint64_t at = 0;
  while ((at = next_.fetch_add(kSliceBytes)) < bytes_) {
    std::memcpy(to_ + at, from_ + at, std::min(kSliceBytes, bytes_ - at));
  }
}

void CopyThreads::work() {
  std::unique_lock lock(mutex_);
  uint64_t seen = 0;
  for (;;) {
    wake_.wait(lock, [&] { return isEnding_ || round_ != seen; });
    if (isEnding_) return;
    seen = round_;
    lock.unlock();
    copySlices();
    lock.lock();
    if (--busy_ == 0) done_.notify_one();
  }
}

void CopyThreads::copy(void* to, const void* from, uint64_t bytes) {
  if (bytes >= 2 * kSliceBytes && !isStarted_) start();
  if (bytes < 2 * kSliceBytes || threads_.empty()) {
    std::memcpy(to, from, bytes);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    to_ = static_cast<char*>(to);
    from_ = static_cast<const char*>(from);
    bytes_ = bytes;
    next_ = 0;
    busy_ = int(threads_.size());
    round_++;
  }
  wake_.notify_all();
  copySlices();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
}

}  // namespace aq::cuda
