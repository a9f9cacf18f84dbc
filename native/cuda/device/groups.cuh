// groups.cuh: several tensors of different sizes in one elementwise launch: blocks are dealt out to
// them in pieces of one size. The list travels as the kernel's parameter.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/launch.h"

namespace aq::cuda {

// With 4 tensors a group 2.5 KB of the 4 KB that a kernel's parameters may have everywhere.
inline constexpr int kMaxGroups = 48;

// A group is kTensors tensors of one size, which are worked on together.
template <int kTensors>
struct Groups {
  void* data[kMaxGroups][kTensors];
  int64_t count[kMaxGroups];            // elements
  uint32_t firstBlock[kMaxGroups + 1];  // of each group, then the number of all blocks
  bool isWide[kMaxGroups];              // all addresses allow 16-byte accesses
  int32_t size = 0;                     // groups

  uint32_t blocks() const { return firstBlock[size]; }

  // Adds a group whose pieces of `piece` elements take a block each. An empty one is left out.
  void add(const aq_view* views, int64_t piece) {
    if (size == 0) firstBlock[0] = 0;
    const int64_t n = numel(views[0]);
    if (n == 0) return;
    isWide[size] = true;
    for (int t = 0; t < kTensors; t++) {
      data[size][t] = views[t].data;
      isWide[size] = isWide[size] && isAligned16(views[t].data);
    }
    count[size] = n;
    firstBlock[size + 1] = firstBlock[size] + uint32_t((n + piece - 1) / piece);
    size++;
  }

  __device__ int find(uint32_t block) const {
    int low = 0, high = size - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (firstBlock[middle] <= block) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

}  // namespace aq::cuda
