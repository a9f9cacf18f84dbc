// memory.cc: a caching allocator in three rules.
//  * A request is rounded up to its size class (eight per power of two, so at most 12.5 % is lost)
//    and served by the class's most recently released block, else by the system.
//  * A released block is cached, unless it is larger than 64 MiB. The cache holds at most half of
//    the highest use so far and 512 MiB; beyond that its oldest blocks go back to the system.
//  * When the system refuses, the cache is emptied and the request tried once more.
// Under AddressSanitizer the classes only count: a block has the size that was asked for and goes
// straight back to the system.
#include "native/cpu/memory.h"

#include <cerrno>
#include <cinttypes>
#include <cstdlib>
#include <mutex>

#include "native/cpu/kernel_util.h"
#include "native/cpu/system_memory.h"

namespace aq::cpu {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kMapFrom = 1u << 20;  // from here on blocks are mappings, returned at once
constexpr uint64_t kLargestCached = 64u << 20;
constexpr uint64_t kCacheFloor = 64u << 20;  // what may be cached however little was in use
constexpr uint64_t kCacheCeiling = 512u << 20;
constexpr int kAddressBits = 47;  // no request may be larger than 2^47 bytes
constexpr int kClasses = 8 + (kAddressBits - 9) * 8;

// Links of a cached block, kept in its own first bytes: neighbours within its class and by age.
struct Cached {
  Cached *classNewer, *classOlder;
  Cached *newer, *older;
  uint64_t size;
};
static_assert(sizeof(Cached) <= kAlignment);

struct SizeClass {
  int index;
  uint64_t size;
};

// Up to 512 bytes multiples of 64; then eight steps from each power of two to the next.
SizeClass classOf(uint64_t bytes) {
  const uint64_t least = bytes < kAlignment ? kAlignment : bytes;
  if (least <= 512) {
    const uint64_t units = (least + kAlignment - 1) / kAlignment;
    return {int(units) - 1, units * kAlignment};
  }
  const int power = 63 - __builtin_clzll(least - 1);  // 2^power < least <= 2^(power+1)
  const uint64_t step = uint64_t(1) << (power - 3);
  const uint64_t units = (least + step - 1) / step;  // 9 .. 16
  return {8 + (power - 9) * 8 + int(units) - 9, units * step};
}

void* systemAllocate(uint64_t size) {
  return size < kMapFrom || kSanitized ? alignedAllocate(kAlignment, size) : mapPages(size);
}

void systemRelease(void* data, uint64_t size) {
  if (size < kMapFrom || kSanitized)
    alignedFree(data);
  else
    unmapPages(data, size);
}

struct Limit {
  const char* text;  // the variable, or null
  uint64_t bytes;    // UINT64_MAX: none
  bool valid;
};

Limit readLimit() {
  const char* text = std::getenv("AQ_MEMORY_LIMIT");
  if (!text || !*text) return {nullptr, UINT64_MAX, true};
  char* end = nullptr;
  errno = 0;
  const unsigned long long bytes = std::strtoull(text, &end, 10);
  const bool valid = *text >= '0' && *text <= '9' && *end == 0 && errno == 0;
  return {text, valid ? bytes : UINT64_MAX, valid};
}

const Limit& memoryLimit() {
  static const Limit limit = readLimit();
  return limit;
}

class Pool {
 public:
  constexpr Pool() = default;

  void* take(uint64_t bytes) {
    const SizeClass sizeClass = classOf(bytes);
    const std::lock_guard lock(mutex_);
    void* data = newest_[sizeClass.index];
    if (data) {
      unlink(newest_[sizeClass.index]);
    } else {
      const uint64_t limit = memoryLimit().bytes;
      if (sizeClass.size > limit || used_ > limit - sizeClass.size) return nullptr;
      evictTo(limit - sizeClass.size - used_);
      const uint64_t size = kSanitized ? bytes : sizeClass.size;
      data = systemAllocate(size);
      if (!data) {
        evictTo(0);
        data = systemAllocate(size);
      }
      if (!data) return nullptr;
    }
    used_ += sizeClass.size;
    peak_ = used_ > peak_ ? used_ : peak_;
    return data;
  }

  void give(void* data, uint64_t bytes) {
    const SizeClass sizeClass = classOf(bytes);
    const std::lock_guard lock(mutex_);
    used_ -= sizeClass.size;
    if (sizeClass.size > kLargestCached || kSanitized) {
      systemRelease(data, sizeClass.size);
      return;
    }
    link(static_cast<Cached*>(data), sizeClass);
    const uint64_t half = peak_ / 2 > kCacheFloor ? peak_ / 2 : kCacheFloor;
    evictTo(half < kCacheCeiling ? half : kCacheCeiling);
  }

  aq_memory_info info() {
    const std::lock_guard lock(mutex_);
    return {used_, cached_, peak_};
  }

 private:
  void link(Cached* block, const SizeClass& sizeClass) {
    Cached*& head = newest_[sizeClass.index];
    *block = {nullptr, head, nullptr, newestOfAll_, sizeClass.size};
    if (head) head->classNewer = block;
    head = block;
    if (newestOfAll_)
      newestOfAll_->newer = block;
    else
      oldestOfAll_ = block;
    newestOfAll_ = block;
    cached_ += sizeClass.size;
  }

  void unlink(Cached* block) {
    if (block->classNewer)
      block->classNewer->classOlder = block->classOlder;
    else
      newest_[classOf(block->size).index] = block->classOlder;
    if (block->classOlder) block->classOlder->classNewer = block->classNewer;
    if (block->newer)
      block->newer->older = block->older;
    else
      newestOfAll_ = block->older;
    if (block->older)
      block->older->newer = block->newer;
    else
      oldestOfAll_ = block->newer;
    cached_ -= block->size;
  }

  void evictTo(uint64_t bytes) {
    while (cached_ > bytes) {
      Cached* block = oldestOfAll_;
      const uint64_t size = block->size;
      unlink(block);
      systemRelease(block, size);
    }
  }

  std::mutex mutex_;
  Cached* newest_[kClasses] = {};
  Cached* newestOfAll_ = nullptr;
  Cached* oldestOfAll_ = nullptr;
  uint64_t used_ = 0, cached_ = 0, peak_ = 0;
};

// Constant-initialized, and its destructor does nothing: finalizers may still release tensors while
// the process exits.
constinit Pool pool;

}  // namespace

int32_t allocateBlock(uint64_t bytes, void** data, aq_error* err) noexcept {
  // More than an address space holds has no size class.
  const bool sane = bytes <= uint64_t(1) << kAddressBits;
  *data = sane ? pool.take(bytes) : nullptr;
  if (*data) return AQ_OK;
  const Limit& limit = memoryLimit();
  return fail(err, AQ_OOM,
              "out of memory: a tensor asks for %" PRIu64 " bytes while %" PRIu64
              " bytes are in use%s%s%s; dispose tensors that are no longer needed, or use fewer "
              "calibration windows or shorter ones",
              bytes, pool.info().used_bytes, limit.text ? " (AQ_MEMORY_LIMIT is " : "",
              limit.text ? limit.text : "", limit.text ? ")" : "");
}

void releaseBlock(void* data, uint64_t bytes) noexcept {
  if (data) pool.give(data, bytes);
}

aq_memory_info memoryInfo() noexcept { return pool.info(); }

int32_t checkMemoryLimit(aq_error* err) noexcept {
  const Limit& limit = memoryLimit();
  if (limit.valid) return AQ_OK;
  return fail(err, AQ_ARG,
              "AQ_MEMORY_LIMIT is \"%.40s\", expected a number of bytes such as "
              "1073741824; correct it or unset it",
              limit.text);
}

}  // namespace aq::cpu
