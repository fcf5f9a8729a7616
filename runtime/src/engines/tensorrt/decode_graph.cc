#include "engines/tensorrt/decode_graph.h"

namespace sala::tensorrt {

Expected<DecodeGraph> DecodeGraph::capture(const cuda::CudaDriver& driver, cuda::CUstream stream,
                                           const std::function<Status()>& record) {
  // Only this thread's calls that would break the capture are refused meanwhile.
  SALA_RETURN_IF_ERROR(
      driver.check(driver.stream_begin_capture(stream, cuda::kStreamCaptureModeThreadLocal), "begin a capture"));
  const Status recorded = record();
  cuda::CUgraph captured = nullptr;
  // Also after a failure, or the stream stays in capture.
  const Status ended = driver.check(driver.stream_end_capture(stream, &captured), "capture a decode step");
  if (!recorded || !ended) {
    if (captured != nullptr) driver.graph_destroy(captured);
    return recorded ? ended.error() : recorded.error();
  }
  DecodeGraph graph;
  graph.driver_ = &driver;
  const Status made =
      driver.check(driver.graph_instantiate(&graph.executable_, captured, 0), "make a graph of a decode step");
  driver.graph_destroy(captured);
  if (!made) return made.error();
  return graph;
}

DecodeGraph::~DecodeGraph() {
  if (executable_ != nullptr) driver_->graph_exec_destroy(executable_);
}

Status DecodeGraph::launch(cuda::CUstream stream) const {
  return driver_->check(driver_->graph_launch(executable_, stream), "launch a decode step");
}

}  // namespace sala::tensorrt
