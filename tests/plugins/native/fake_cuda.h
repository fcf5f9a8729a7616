// Control of the fake CUDA driver.

#pragma once

#include <cuda.h>

#include <functional>
#include <string>

/// Architecture of all devices, 10 * major + minor.
extern "C" void fake_cuda_set_sm(int sm);

/// Makes the context of a device current; at first it is that of device 0. In fake_cuda_immediate.cc alone.
extern "C" void fake_cuda_set_context(int device);

/// Makes the next call of a function fail, if it is one that fake_cuda_immediate.cc defines.
extern "C" void fake_cuda_fail(const char* function);

/// What was asked of the driver since the last call, as one JSON array. Valid until the next call.
extern "C" const char* fake_cuda_take_events();

/// Notes that `event` was asked, with the members of its JSON object that are not its name.
void fake_cuda_record(const std::string& event, const std::string& members);

/// Puts work on a stream, to be recorded when it is done. fake_cuda_immediate.cc does it at once.
CUresult fake_cuda_submit(CUstream stream, const std::string& event, const std::string& members,
                          std::function<void()> effect);

/// Copies bytes of the GPU, or fails if one end is none of its memory. fake_cuda_immediate.cc has none and copies none.
CUresult fake_cuda_copy(CUdeviceptr to, CUdeviceptr from, size_t bytes);
