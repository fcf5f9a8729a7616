// A step of the fake TensorRT: what a context must have for it, and what it computes.

#pragma once

namespace sala::test {

/// IExecutionContext::enqueueV3: puts a step on the stream, or refuses it with a line in the log.
bool enqueue(void* implementation, void* stream);

}  // namespace sala::test
