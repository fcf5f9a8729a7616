#include "fake_cuda.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

namespace {

using Work = std::vector<std::function<void()>>;

struct Stream {
  Work waiting;
  Work captured;
  bool captures = false;
};

sala::test::FakeCuda fake;
std::mutex mutex;  // of `fake` and `capturing_streams`; a stream serves one thread at a time
thread_local int current_contexts = 0;
int capturing_streams = 0;
int context;

Stream& stream_of(CUstream stream) { return *reinterpret_cast<Stream*>(stream); }

CUresult needs_context(CUresult result = CUDA_SUCCESS) {
  return current_contexts > 0 ? result : CUDA_ERROR_INVALID_CONTEXT;
}

using Lock = std::lock_guard<std::mutex>;

/// Counts a call; true if it must fail.
bool is_failing(int& calls_before_failure) {
  const Lock lock(mutex);
  if (calls_before_failure == 0) return true;
  if (calls_before_failure > 0) --calls_before_failure;
  return false;
}

bool inside(CUdeviceptr at, size_t bytes) {
  const Lock lock(mutex);
  auto block = fake.device_blocks.upper_bound(at);
  if (block == fake.device_blocks.begin()) return false;
  --block;
  return at + bytes <= block->first + block->second;
}

CUresult submit(CUstream stream, std::function<void()> work) {
  if (stream == nullptr) {
    work();
  } else {
    fake_cuda_submit(stream, &work);
  }
  return CUDA_SUCCESS;
}

CUresult copy(CUstream stream, void* to, const void* from, size_t bytes, CUdeviceptr device) {
  if (!inside(device, bytes)) return needs_context(CUDA_ERROR_INVALID_VALUE);
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  return submit(stream, [=] { std::memcpy(to, from, bytes); });
}

void* host(CUdeviceptr device) { return reinterpret_cast<void*>(device); }

}  // namespace

extern "C" {

sala::test::FakeCuda* fake_cuda() { return &fake; }

bool fake_cuda_submit(CUstream stream, const std::function<void()>* work) {
  Stream& to = stream_of(stream);
  (to.captures ? to.captured : to.waiting).push_back(*work);
  return to.captures;
}

CUresult cuInit(unsigned int) { return fake.init; }

CUresult cuDriverGetVersion(int* version) {
  *version = fake.version;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(fake.devices.size());
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  std::strncpy(name, ("Fake GPU " + std::to_string(device)).c_str(), static_cast<size_t>(length));
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  const auto [major, minor] = fake.devices.at(static_cast<size_t>(device));
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? major : minor;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* retained, CUdevice) {
  ++fake.contexts;
  *retained = reinterpret_cast<CUcontext>(&context);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) {
  --fake.contexts;
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext pushed) {
  if (pushed != reinterpret_cast<CUcontext>(&context)) return CUDA_ERROR_INVALID_CONTEXT;
  ++current_contexts;
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* popped) {
  *popped = reinterpret_cast<CUcontext>(&context);
  return current_contexts-- > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  const Lock lock(mutex);
  *total = static_cast<size_t>(fake.total_bytes);
  *free = static_cast<size_t>(std::max<int64_t>(fake.total_bytes - fake.used_bytes(), 0));
  return needs_context();
}

CUresult cuMemAlloc(CUdeviceptr* data, size_t bytes) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  const Lock lock(mutex);
  if (capturing_streams > 0) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const auto wanted = static_cast<int64_t>(bytes);
  if (wanted > fake.largest_block || wanted > fake.total_bytes - fake.used_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
  // Not zeros: whoever needs them must ask.
  void* block = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(block, 0x7f, bytes);
  *data = reinterpret_cast<CUdeviceptr>(block);
  fake.device_blocks[*data] = bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr data) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  const Lock lock(mutex);
  if (fake.device_blocks.erase(data) == 0) return CUDA_ERROR_INVALID_VALUE;
  std::free(host(data));
  return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** data, size_t bytes, unsigned int) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (is_failing(fake.pins_before_failure)) return CUDA_ERROR_OUT_OF_MEMORY;
  *data = std::malloc(bytes);
  const Lock lock(mutex);
  fake.pinned_blocks[reinterpret_cast<uintptr_t>(*data)] = bytes;
  fake.peak_pinned_bytes = std::max(fake.peak_pinned_bytes, fake.pinned_bytes());
  return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* data) {
  const Lock lock(mutex);
  if (fake.pinned_blocks.erase(reinterpret_cast<uintptr_t>(data)) == 0) return CUDA_ERROR_INVALID_VALUE;
  std::free(data);
  return needs_context();
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
  return copy(nullptr, host(to), from, bytes, to);
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) { return copy(nullptr, to, host(from), bytes, from); }

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  if (is_failing(fake.copies_before_failure)) return CUDA_ERROR_ILLEGAL_ADDRESS;
  std::this_thread::sleep_for(std::chrono::milliseconds(fake.copy_milliseconds));
  return copy(stream, host(to), from, bytes, to);
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy(stream, to, host(from), bytes, from);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
  if (!inside(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return needs_context(submit(stream, [=] { std::memset(host(to), value, bytes); }));
}

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  if (is_failing(fake.streams_before_failure)) return CUDA_ERROR_OUT_OF_MEMORY;
  const Lock lock(mutex);
  ++fake.streams;
  *stream = reinterpret_cast<CUstream>(new Stream());
  return needs_context();
}

CUresult cuStreamDestroy(CUstream stream) {
  const Lock lock(mutex);
  --fake.streams;
  delete &stream_of(stream);
  return needs_context();
}

CUresult cuStreamSynchronize(CUstream stream) {
  if (stream == nullptr) return needs_context();
  if (stream_of(stream).captures) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  Work work = std::move(stream_of(stream).waiting);
  stream_of(stream).waiting.clear();
  for (const auto& each : work) each();
  return needs_context(fake.synchronize);
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  if (fake.begin_capture != CUDA_SUCCESS) return fake.begin_capture;
  const Lock lock(mutex);
  ++capturing_streams;
  stream_of(stream).captures = true;
  return needs_context();
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  const Lock lock(mutex);
  --capturing_streams;
  ++fake.graphs;
  stream_of(stream).captures = false;
  *graph = reinterpret_cast<CUgraph>(new Work(std::move(stream_of(stream).captured)));
  stream_of(stream).captured.clear();
  return needs_context();
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  if (fake.instantiate != CUDA_SUCCESS) return fake.instantiate;
  const Lock lock(mutex);
  ++fake.graphs;
  *executable = reinterpret_cast<CUgraphExec>(new Work(*reinterpret_cast<Work*>(graph)));
  return needs_context();
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  {
    const Lock lock(mutex);
    ++fake.graph_launches;
  }
  for (const auto& each : *reinterpret_cast<Work*>(executable)) fake_cuda_submit(stream, &each);
  return needs_context();
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
  const Lock lock(mutex);
  --fake.graphs;
  delete reinterpret_cast<Work*>(executable);
  return needs_context();
}

CUresult cuGraphDestroy(CUgraph graph) {
  const Lock lock(mutex);
  --fake.graphs;
  delete reinterpret_cast<Work*>(graph);
  return needs_context();
}

#ifndef FAKE_CUDA_IS_OLD
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "some error";
  return CUDA_SUCCESS;
}
#endif

}  // extern "C"
