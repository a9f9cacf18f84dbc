#include "native/core/graph.h"

#include "native/core/error.h"

namespace aq {

bool Graph::begin(const std::shared_ptr<Queue>& queue) {
  const aq_backend& table = *queue->backend().table;
  if (!table.capture_begin) return false;
  aq_error err{};
  const int32_t status = table.capture_begin(queue->handle(), &err);
  if (status != AQ_OK) throw Error{status, err.text};
  queue->countApart();
  return true;
}

std::shared_ptr<Graph> Graph::end(const std::shared_ptr<Queue>& queue) {
  const aq_backend& table = *queue->backend().table;
  if (!table.capture_end) raise(AQ_UNSUPPORTED, "%s does not record", queue->device().c_str());
  const std::shared_ptr<Graph> graph(new Graph);
  graph->queue_ = queue;
  graph->calls_ = queue->countedApart();
  aq_error err{};
  const int32_t status = table.capture_end(queue->handle(), &graph->handle_, &err);
  if (status != AQ_OK) throw Error{status, err.text};
  return graph;
}

void Graph::abandon(const std::shared_ptr<Queue>& queue) {
  const aq_backend& table = *queue->backend().table;
  (void)queue->countedApart();
  aq_error ignored{};
  if (table.capture_end) table.capture_end(queue->handle(), nullptr, &ignored);
}

Graph::~Graph() {
  if (handle_) queue_->backend().table->graph_free(queue_->handle(), handle_);
}

void Graph::launch() const {
  aq_error err{};
  const int32_t status = queue_->backend().table->graph_launch(queue_->handle(), handle_, &err);
  if (status != AQ_OK) throw Error{status, err.text};
  for (const OpCount& call : calls_) queue_->countCalls(call.op, call.count);
}

}  // namespace aq
