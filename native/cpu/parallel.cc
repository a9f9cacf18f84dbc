// parallel.cc: the thread pool behind parallelFor, and the per-thread scratch memory.
//
// One job runs at a time. The caller publishes it, opens a gate, works on it itself, closes the
// gate when the tasks have run out, and waits for the workers that are still inside. A worker that
// wakes too late finds the gate closed and goes back to waiting, so a short job never waits for a
// slow wake-up. Workers spin for a moment between jobs, since kernels come in quick succession, and
// then sleep. They are detached and the pool is never destroyed: at exit there is nothing to join.
#include "native/cpu/parallel.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native/cpu/system_memory.h"

namespace aq::cpu {
namespace {

constexpr int kMaxThreads = 1024;
constexpr auto kSpinTime = std::chrono::microseconds(40);

// True on a thread that is running a task: a nested parallelFor then runs inline.
thread_local bool insideTask = false;

void pauseCpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or until kSpinTime has passed; says which.
template <class Ready>
bool spinUntil(const Ready& ready) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; i++) {
      if (ready()) return true;
      pauseCpu();
    }
  } while (std::chrono::steady_clock::now() - start < kSpinTime);
  return ready();
}

int coresOfProcess() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    const int count = CPU_COUNT(&set);
    if (count > 0) return count < kMaxThreads ? count : kMaxThreads;
  }
#endif
  const int count = int(std::thread::hardware_concurrency());
  return count < 1 ? 1 : (count < kMaxThreads ? count : kMaxThreads);
}

int defaultThreads() {
  if (const char* text = std::getenv("AQ_THREADS")) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end != text && *end == '\0' && value >= 1 && value <= kMaxThreads) return int(value);
  }
  return coresOfProcess();
}

class Pool {
 public:
  Pool() : wanted_(defaultThreads()) {}

  int threads() const { return wanted_.load(std::memory_order_relaxed); }
  void setThreads(int threads) {
    wanted_.store(threads < 1 ? 1 : (threads > kMaxThreads ? kMaxThreads : threads),
                  std::memory_order_relaxed);
  }

  void run(int64_t tasks, TaskFn fn, void* context) {
    std::lock_guard<std::mutex> turn(turn_);
    const int64_t helpers64 = (tasks < threads() ? tasks : threads()) - 1;
    const int helpers = startWorkers(int(helpers64));
    job_.fn = fn;
    job_.context = context;
    job_.tasks = tasks;
    job_.error = nullptr;
    next_.store(0, std::memory_order_relaxed);
    limit_ = uint32_t(helpers);
    gate_.store(kOpen);
    generation_.fetch_add(1);
    wake(helpers);

    work();

    if ((gate_.fetch_and(~kOpen) & ~kOpen) != 0) waitForHelpers();
    if (job_.error) {
      std::exception_ptr error;
      error.swap(job_.error);
      std::rethrow_exception(error);
    }
  }

 private:
  struct Job {
    TaskFn fn = nullptr;
    void* context = nullptr;
    int64_t tasks = 0;
    std::exception_ptr error;  // the first one thrown by a task; guarded by errorMutex_
  };
  static constexpr uint32_t kOpen = 1u << 31;  // the other bits of gate_ count the workers inside

  // Takes tasks until there are none. An exception ends the job early and is kept for the caller.
  void work() {
    insideTask = true;
    for (;;) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= job_.tasks) break;
      try {
        job_.fn(job_.context, task);
      } catch (...) {
        next_.store(job_.tasks, std::memory_order_relaxed);
        std::lock_guard<std::mutex> lock(errorMutex_);
        if (!job_.error) job_.error = std::current_exception();
      }
    }
    insideTask = false;
  }

  bool enter() {
    uint32_t gate = gate_.load();
    while ((gate & kOpen) && (gate & ~kOpen) < limit_)
      if (gate_.compare_exchange_weak(gate, gate + 1)) return true;
    return false;
  }

  void leave() {
    if (gate_.fetch_sub(1) == 1) {  // the last one out of a closed gate
      std::lock_guard<std::mutex> lock(sleepMutex_);
      finished_.notify_one();
    }
  }

  void waitForHelpers() {
    const auto empty = [this] { return gate_.load() == 0; };
    if (spinUntil(empty)) return;
    std::unique_lock<std::mutex> lock(sleepMutex_);
    finished_.wait(lock, empty);
  }

  void wake(int helpers) {
    if (sleeping_.load() == 0) return;
    int count;
    {
      // Under the lock a worker either has not tested generation_ yet or is already waiting.
      std::lock_guard<std::mutex> lock(sleepMutex_);
      count = sleeping_.load();
    }
    if (helpers >= count) {
      started_.notify_all();
    } else {
      for (int i = 0; i < helpers; i++) started_.notify_one();
    }
  }

  // Grows the pool to `wanted` workers; returns how many there are, at most `wanted`. A system that
  // refuses a thread costs speed, not the result.
  int startWorkers(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread([this, seen = generation_.load()] { workerLoop(seen); }).detach();
      } catch (const std::system_error&) {
        return workers_;
      }
      workers_++;
    }
    return wanted;
  }

  [[noreturn]] void workerLoop(uint32_t seen) {
    for (;;) {
      const auto newJob = [this, &seen] { return generation_.load() != seen; };
      if (!spinUntil(newJob)) {
        std::unique_lock<std::mutex> lock(sleepMutex_);
        sleeping_.fetch_add(1);
        started_.wait(lock, newJob);
        sleeping_.fetch_sub(1);
      }
      seen = generation_.load();
      if (enter()) {
        work();
        leave();
      }
    }
  }

  std::mutex turn_;  // one host thread at a time
  std::atomic<int> wanted_;
  int workers_ = 0;  // guarded by turn_
  Job job_;
  std::atomic<uint32_t> limit_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> gate_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  std::mutex sleepMutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  std::mutex errorMutex_;
};

Pool& pool() {
  static Pool* const instance = new Pool;  // never deleted: detached workers use it until the end
  return *instance;
}

struct Scratch {
  void* data = nullptr;
  uint64_t capacity = 0;
};
struct ScratchSet {
  Scratch slots[8];
  ~ScratchSet() {
    for (Scratch& slot : slots) alignedFree(slot.data);
  }
};
thread_local ScratchSet scratchSet;

}  // namespace

int threadCount() { return pool().threads(); }

void setThreadCount(int threads) { pool().setThreads(threads); }

void runTasks(int64_t tasks, TaskFn fn, void* context) {
  if (tasks <= 0) return;
  if (tasks == 1 || insideTask || threadCount() == 1) {
    for (int64_t task = 0; task < tasks; task++) fn(context, task);
    return;
  }
  pool().run(tasks, fn, context);
}

void* threadScratch(int slot, uint64_t bytes) {
  Scratch& scratch = scratchSet.slots[slot];
  if (bytes > scratch.capacity || !scratch.data) {
    // Large buffers go on huge pages where the system has them: packed panels are read from end to
    // end, and misses of the address cache cost a GEMM 4 %.
    constexpr uint64_t kHugePage = 2 << 20;
    const uint64_t unit = bytes >= kHugePage ? kHugePage : 4096;
    const uint64_t capacity = (bytes / unit + 1) * unit;
    alignedFree(scratch.data);  // the contents need not survive: free first to keep the peak low
    scratch = {};
    void* data = alignedAllocate(unit, capacity);
    if (!data) throw std::bad_alloc();
    if (unit == kHugePage) preferHugePages(data, capacity);
    scratch = {data, capacity};
  }
  limitUse(scratch.data, bytes, scratch.capacity);
  return scratch.data;
}

}  // namespace aq::cpu
