// Streams that do everything at once, on GPUs without memory: addresses are made up. There is one context for each GPU.
// Another thread captures a stream all the time: what that forbids fails unless this thread has asked to be let.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fake_cuda.h"

namespace {

constexpr CUdeviceptr kFirstBlock = CUdeviceptr{1} << 44;
constexpr CUdeviceptr kBlockStride = CUdeviceptr{1} << 32;

std::vector<CUcontext> contexts;  // the current one is the last
std::map<CUdeviceptr, CUcontext> blocks;
CUdeviceptr next_block = kFirstBlock;
uintptr_t next_stream = 1;
CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
std::string failing;

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(device) + 1); }
CUcontext current_context() { return contexts.empty() ? context_of(0) : contexts.back(); }
int current_device() { return static_cast<int>(reinterpret_cast<uintptr_t>(current_context())) - 1; }
std::string number(uint64_t value) { return std::to_string(value); }
std::string of_stream(CUstream stream) { return "\"stream\": " + number(reinterpret_cast<uint64_t>(stream)); }

CUresult outcome(const std::string& function, bool is_valid = true) {
  if (failing == function) {
    failing.clear();
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return is_valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/// Of a function that may not be called while another thread captures.
CUresult outcome_beside_capture(const std::string& function, bool is_valid = true) {
  if (mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return outcome(function, is_valid);
}

CUresult recorded(CUresult result, const std::string& event, const std::string& members) {
  if (result == CUDA_SUCCESS) fake_cuda_record(event, members);
  return result;
}

}  // namespace

void fake_cuda_set_context(int device) { contexts = {context_of(device)}; }

void fake_cuda_fail(const char* function) { failing = function; }

CUresult fake_cuda_submit(CUstream /*stream*/, const std::string& event, const std::string& members,
                          std::function<void()> effect) {
  fake_cuda_record(event, members);
  effect();
  return CUDA_SUCCESS;
}

CUresult fake_cuda_copy(CUdeviceptr /*to*/, CUdeviceptr /*from*/, size_t /*bytes*/) { return CUDA_SUCCESS; }

extern "C" {

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current_context();
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  contexts = {current_context(), context};
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  *context = current_context();
  contexts.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device();
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  const CUresult result = outcome_beside_capture("cuMemAlloc", bytes > 0);
  if (result != CUDA_SUCCESS) return result;
  *address = std::exchange(next_block, next_block + kBlockStride);
  blocks[*address] = current_context();
  return recorded(result, "allocate",
                  "\"address\": " + number(*address) + ", \"bytes\": " + number(bytes) +
                      ", \"device\": " + std::to_string(current_device()));
}

/// In its own context alone.
CUresult cuMemFree(CUdeviceptr address) {
  const auto block = blocks.find(address);
  const bool is_valid = block != blocks.end() && block->second == current_context();
  if (is_valid) blocks.erase(block);
  return recorded(outcome_beside_capture("cuMemFree", is_valid), "free", "\"address\": " + number(address));
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
  return recorded(outcome("cuMemsetD8Async", blocks.contains(address)), "fill",
                  "\"address\": " + number(address) + ", \"value\": " + std::to_string(value) +
                      ", \"bytes\": " + number(bytes) + ", " + of_stream(stream));
}

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  *stream = reinterpret_cast<CUstream>(next_stream++);
  return recorded(outcome_beside_capture("cuStreamCreate", flags == CU_STREAM_NON_BLOCKING), "create_stream",
                  of_stream(*stream));
}

CUresult cuStreamDestroy(CUstream stream) {
  return recorded(outcome("cuStreamDestroy"), "destroy_stream", of_stream(stream));
}

CUresult cuStreamSynchronize(CUstream stream) {
  return recorded(outcome("cuStreamSynchronize"), "synchronize", of_stream(stream));
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* exchanged) {
  std::swap(mode, *exchanged);
  return CUDA_SUCCESS;
}

}  // extern "C"
