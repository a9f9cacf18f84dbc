// chooseSplits: how many blocks share a tile of the result of int4_matmul (int4.h).
#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "native/cuda/int4.h"
#include "native/cuda/launch.h"

namespace aq::cuda::int4 {

namespace {

constexpr int32_t kMaxSplits = 8;  // blocks of a portable cluster

}  // namespace

// Asked for once, because the answer takes longer than a launch. Multiprocessors come in groups that
// clusters cannot cross, of sizes that differ from one chip to the next.
int64_t clustersAtOnce(const aq_queue* queue, const void* kernel, int threads, int sharedBytes,
                       int32_t size) {
  static std::mutex mutex;
  static auto* const known = new std::map<std::tuple<int, const void*, int, int32_t>, int>;
  const std::lock_guard lock(mutex);
  const auto [at, isNew] = known->try_emplace({queue->device, kernel, sharedBytes, size}, 0);
  if (isNew) {
    const EarlyLaunch shape(queue, dim3(unsigned(size)), threads, sharedBytes, size);
    int count = 0;
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &shape.config) == cudaSuccess)
      at->second = count;
    (void)cudaGetLastError();
  }
  return at->second;
}

Splits chooseSplits(const aq_queue* queue, const void* kernel, int threads, int sharedBytes,
                    const SplitRule& rule) {
  Splits best = {1, INT64_MAX};
  for (int32_t s = 1; s <= kMaxSplits && (s == 1 || rule.tiles >= s * rule.least); s++) {
    int64_t atOnce = std::max<int64_t>(1, queue->multiprocessors * rule.atOnce / s);
    if (s > 1 && queue->computeCapability >= 90)
      atOnce = std::min(atOnce, clustersAtOnce(queue, kernel, threads, sharedBytes, s));
    if (atOnce == 0) continue;
    // Where two may share a multiprocessor, clusters only pay while each has one of its own.
    if (s > 1 && rule.atOnce > 1 && rule.blocks * s > queue->multiprocessors) break;
    // A round of blocks: those that share a multiprocessor slow each other down.
    const int64_t share = (rule.tiles + s - 1) / s, rest = rule.blocks % atOnce;
    const int64_t together = (rest * s + queue->multiprocessors - 1) / queue->multiprocessors;
    int64_t cost = rule.blocks / atOnce * (rule.atOnce * share + rule.fixed);
    if (rest > 0) cost += std::min(together, rule.atOnce) * share + rule.fixed;
    if (cost < best.steps) best = {s, cost};
  }
  return best;
}

}  // namespace aq::cuda::int4
