// passes.h: passes over matrices that run beside each other where none needs what another one makes.
//
// A pass alone loses what its first loads and its last blocks take. Two that do not depend on each other
// lose it once: the second one starts in the room that the first one's last blocks leave. What is needed
// for that, on Hopper (launch.h, device/sequence.cuh):
//
// Runs      passes of calls one right behind the other, of which none reads or writes what another one
//           of them writes, are a run. The first waits for the kernel in front of it before it lets
//           the next one start, as every kernel does; the others do not wait before they start, and
//           one thread of theirs does before it ends.
// In front  of a run: all of it is over before the first pass lets the second one start, and so before
//           any other pass of the run begins. It does not matter what those read and write of it.
// Behind    a run: a kernel waits for the end of the last pass, which has waited for the end of the one
//           before, and so on to the first. Whatever was made is there, and may be written over.
// Inside    a run: passes write into memory that no other one reads or writes. What memory it is, not
//           which tensor, decides: an output may lie where the pass before still reads something that
//           was released since, and its temporary memory is the next one's.
// Calls     everything that enqueues counts as a call (queue.h), so that a copy, a recording or a
//           kernel of any other op ends a run.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Bytes of device memory.
struct Span {
  uintptr_t begin, end;

  static Span of(const void* data, uint64_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    return {begin, data ? begin + uintptr_t(bytes) : begin};
  }
  static Span of(const aq_view& view) {
    constexpr uint64_t kLargest = 8;  // bytes of an element
    const uint64_t size = view.dtype == AQ_I8 || view.dtype == AQ_U8      ? 1
                          : view.dtype == AQ_BF16 || view.dtype == AQ_F16 ? 2
                          : view.dtype == AQ_F32                          ? 4
                                                                          : kLargest;
    return of(view.data, view.data ? uint64_t(numel(view)) * size : 0);
  }
  bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

// The passes at a queue's end.
class PassRun {
 public:
  // What the pass of the queue's call reads and writes: all of its views, and temporary memory.
  // Returns whether it runs beside those in front of it. The pass is the call's only kernel, or its
  // first, and end() is called then.
  bool join(uint64_t call, const aq_view* in, int32_t n_in, const aq_view* out, int32_t n_out,
            std::initializer_list<Span> temporary = {});
  // What comes now waits for the passes.
  void end() { size_ = 0; }

 private:
  static constexpr size_t kMost = 64;  // spans of a run
  struct Use {
    Span span;
    bool isWritten;
  };

  bool add(Span span, bool isWritten);

  Use uses_[kMost];
  size_t size_ = 0, others_ = 0;  // spans, and those of other passes than the last
  uint64_t last_ = 0;             // call of the last pass
};

}  // namespace aq::cuda
