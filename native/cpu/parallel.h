// parallel.h: the thread pool of the CPU backend.
//
// parallelFor(tasks, body) runs body(i) for i in [0, tasks) on up to threadCount() threads, the
// caller included, and returns when all are done. Tasks are handed out dynamically, so a kernel's
// result must not depend on which thread runs which task: each task owns its outputs, and a
// reduction goes over chunks whose size is fixed, never over threads. That is how results stay the
// same for any --threads.
// Nested calls run inline. Calls from several JavaScript threads take turns.
#pragma once
#include <cstdint>

namespace aq::cpu {

using TaskFn = void (*)(void* context, int64_t task);

int threadCount();
void setThreadCount(int threads);  // 1 .. 1024; takes effect at the next call
void runTasks(int64_t tasks, TaskFn fn, void* context);

template <class Body>
inline void parallelFor(int64_t tasks, const Body& body) {
  runTasks(
      tasks, [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Scratch memory of the calling thread, kept for its lifetime and grown on demand; 64-byte aligned.
// `slot` (0..7) tells apart buffers that are alive together. Throws std::bad_alloc.
void* threadScratch(int slot, uint64_t bytes);

}  // namespace aq::cpu
