// graph.h: a sequence of ops that was recorded once and is enqueued again and again by one call each.
//
// Between begin and end the ops that are invoked on a queue are checked and recorded, and nothing
// runs; what would have to wait or to read host memory raises AQ_UNSUPPORTED. A run uses the tensors
// of the recording, with what they hold then: its results are in the tensors that the recording made,
// and every run writes them anew. The caller keeps alive whatever else the ops touch.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "native/core/device.h"

namespace aq {

class Graph {
 public:
  // False where the queue's backend does not record; then ops go on as before.
  static bool begin(const std::shared_ptr<Queue>& queue);
  // Ends what begin began. Raises AQ_UNSUPPORTED if some of it could not be recorded.
  static std::shared_ptr<Graph> end(const std::shared_ptr<Queue>& queue);
  static void abandon(const std::shared_ptr<Queue>& queue);

  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Enqueues the ops. They count as calls of their kernels.
  void launch() const;

 private:
  Graph() = default;
  std::shared_ptr<Queue> queue_;
  aq_graph* handle_ = nullptr;
  std::vector<OpCount> calls_;
};

}  // namespace aq
