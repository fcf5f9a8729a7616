// Makes fake_cuda.cc a libcuda.so.1 that a program can open: device addresses are the host's, work on a stream is done
// when somebody waits for it or goes into the graph that the stream captures, and kernels compute nothing. Tests speak
// with it by environment variables:
//
//   FAKE_CUDA_EVENTS   a file, to which what was asked is written when the program ends: one JSON array. A `launch` or
//                      `copy` is listed when it is done; while a stream captures it is listed as `captured_launch` or
//                      `captured_copy`. Memory that was never freed is listed last, as `leak`.
//   FAKE_CUDA_SM       architecture of the GPU, 90 if not given
//   FAKE_CUDA_FAIL     NAME=CODE: the function of that name fails with that error

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "fake_cuda.h"

namespace {

struct Item {
  std::string event;
  std::string members;
  std::function<void()> effect;
};

struct Stream {
  std::vector<Item> waiting;
  std::vector<Item> captured;
  bool captures = false;
};

using Graph = std::vector<Item>;

std::map<CUdeviceptr, size_t> blocks;
bool is_context_current = false;
int context;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Reads the environment when the library is loaded, and writes the events when it goes.
struct Session {
  Session() {
    fake_cuda_take_events();
    const std::string sm = variable("FAKE_CUDA_SM");
    fake_cuda_set_sm(sm.empty() ? 90 : std::stoi(sm));
  }
  ~Session() {
    for (const auto& [address, bytes] : blocks) {
      fake_cuda_record("leak", "\"address\": " + std::to_string(address) + ", \"bytes\": " + std::to_string(bytes));
    }
    if (const std::string path = variable("FAKE_CUDA_EVENTS"); !path.empty()) {
      std::ofstream(path) << fake_cuda_take_events() << "\n";
    }
  }
} session;

/// The error that the test wants of a function, or what its other needs make of it.
CUresult outcome(const std::string& function, bool is_valid = true) {
  const std::string failing = variable("FAKE_CUDA_FAIL");
  if (failing.starts_with(function + "=")) {
    return static_cast<CUresult>(std::stoi(failing.substr(function.size() + 1)));
  }
  if (!is_context_current) return CUDA_ERROR_INVALID_CONTEXT;
  return is_valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

bool is_memory(CUdeviceptr at, size_t bytes) {
  auto block = blocks.upper_bound(at);
  if (block == blocks.begin()) return false;
  --block;
  return at + bytes <= block->first + block->second;
}

Stream& stream_of(CUstream stream) { return *reinterpret_cast<Stream*>(stream); }
Graph* graph_of(void* graph) { return static_cast<Graph*>(graph); }
void* host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult copy(CUstream stream, void* to, const void* from, size_t bytes) {
  stream_of(stream).waiting.push_back({"", "", [=] { std::memcpy(to, from, bytes); }});
  return CUDA_SUCCESS;
}

}  // namespace

CUresult fake_cuda_submit(CUstream stream, const std::string& event, const std::string& members,
                          std::function<void()> effect) {
  Stream& to = stream_of(stream);
  if (to.captures) fake_cuda_record("captured_" + event, members);
  (to.captures ? to.captured : to.waiting).push_back({event, members, std::move(effect)});
  return CUDA_SUCCESS;
}

CUresult fake_cuda_copy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  if (!is_memory(to, bytes) || !is_memory(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(host(to), host(from), bytes);
  return CUDA_SUCCESS;
}

extern "C" {

CUresult cuInit(unsigned int) {
  is_context_current = true;  // for its own outcome alone
  const CUresult result = outcome("cuInit");
  is_context_current = false;
  return result;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  std::strncpy(name, "Fake GPU", static_cast<size_t>(length));
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* retained, CUdevice) {
  *retained = reinterpret_cast<CUcontext>(&context);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

CUresult cuCtxSetCurrent(CUcontext current) {
  is_context_current = current == reinterpret_cast<CUcontext>(&context);
  return outcome("cuCtxSetCurrent");
}

CUresult cuCtxGetCurrent(CUcontext* current) {
  *current = is_context_current ? reinterpret_cast<CUcontext>(&context) : nullptr;
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext pushed) { return cuCtxSetCurrent(pushed); }

CUresult cuCtxPopCurrent(CUcontext* popped) { return cuCtxGetCurrent(popped); }

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  static CUstreamCaptureMode present = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::swap(present, *mode);
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  const CUresult result = outcome("cuMemAlloc", bytes > 0);
  if (result != CUDA_SUCCESS) return result;
  void* block = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(block, 0x7f, bytes);  // not zeros: whoever needs them must ask
  *address = reinterpret_cast<CUdeviceptr>(block);
  blocks[*address] = bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
  if (blocks.erase(address) == 0) return CUDA_ERROR_INVALID_VALUE;
  std::free(host(address));
  return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  const CUresult result = outcome("cuMemcpyHtoDAsync", is_memory(to, bytes));
  return result == CUDA_SUCCESS ? copy(stream, host(to), from, bytes) : result;
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  const CUresult result = outcome("cuMemcpyDtoHAsync", is_memory(from, bytes));
  return result == CUDA_SUCCESS ? copy(stream, to, host(from), bytes) : result;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
  const CUresult result = outcome("cuMemsetD8Async", is_memory(to, bytes));
  if (result != CUDA_SUCCESS) return result;
  stream_of(stream).waiting.push_back({"", "", [=] { std::memset(host(to), value, bytes); }});
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  *stream = reinterpret_cast<CUstream>(new Stream());
  return outcome("cuStreamCreate", flags == CU_STREAM_NON_BLOCKING);
}

CUresult cuStreamDestroy(CUstream stream) {
  delete &stream_of(stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  if (stream_of(stream).captures) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  for (const Item& item : std::exchange(stream_of(stream).waiting, {})) {
    if (!item.event.empty()) fake_cuda_record(item.event, item.members);
    item.effect();
  }
  return outcome("cuStreamSynchronize");
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  stream_of(stream).captures = true;
  return outcome("cuStreamBeginCapture");
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  stream_of(stream).captures = false;
  *graph = reinterpret_cast<CUgraph>(new Graph(std::exchange(stream_of(stream).captured, {})));
  return outcome("cuStreamEndCapture");
}

CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode*, size_t* count) {
  *count = graph_of(graph)->size();
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  const CUresult result = outcome("cuGraphInstantiateWithFlags");
  if (result == CUDA_SUCCESS) *executable = reinterpret_cast<CUgraphExec>(new Graph(*graph_of(graph)));
  return result;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  const Graph& graph = *graph_of(executable);
  std::copy(graph.begin(), graph.end(), std::back_inserter(stream_of(stream).waiting));
  return outcome("cuGraphLaunch");
}

CUresult cuGraphDestroy(CUgraph graph) {
  delete graph_of(graph);
  return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
  delete graph_of(executable);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  static const std::map<CUresult, const char*> kNames = {
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
      {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
  const auto found = kNames.find(error);
  if (found == kNames.end()) return CUDA_ERROR_INVALID_VALUE;
  *name = found->second;
  return CUDA_SUCCESS;
}

}  // extern "C"
