// A TensorRT of any version that the engine knows, which computes the mock step on the memory of the fake driver.
//
// Its plans are text: what a real plan would say of its tensors; inputs of static shape are weights. Functions stand at
// the positions of interface.h, and a call of any other position ends the process with its name. What an engine must
// have set before a step is checked when it is enqueued, and refused with a line in the log.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sala::test {

struct FakeTensorRt {
  // What it is.
  std::string flavour = "rtx";
  int version[4] = {1, 7, 1, 116};

  // What it refuses.
  bool no_runtime = false;
  std::string deserialize_error;  // logged instead of loading a plan
  std::string context_error;
  int64_t fail_enqueue_after = -1;  // steps that still work; -1: all
  std::string enqueue_error = "Cuda Runtime (an illegal memory access was encountered)";
  bool capturable = true;

  // What happened.
  std::vector<std::string> events;
  void* allocator = nullptr;  // IGpuAllocator
  int objects = 0;            // alive
};

}  // namespace sala::test

extern "C" sala::test::FakeTensorRt* fake_tensorrt();
