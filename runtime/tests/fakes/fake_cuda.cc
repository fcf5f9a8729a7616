#include "fake_cuda.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

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

/// The same, but the calls after it work again.
bool fails_once(int& calls_before_failure) {
  if (!is_failing(calls_before_failure)) return false;
  calls_before_failure = -1;
  return true;
}

/// Whether open pages lie behind all of these addresses.
bool inside_pages(CUdeviceptr at, size_t bytes) {
  const CUdeviceptr end = at + bytes;
  while (at < end) {
    auto mapping = fake.mapped.upper_bound(at);
    if (mapping == fake.mapped.begin()) return false;
    --mapping;
    const CUdeviceptr mapping_end = mapping->first + mapping->second.bytes;
    if (at >= mapping_end || !mapping->second.is_open) return false;
    at = mapping_end;
  }
  return true;
}

bool inside(CUdeviceptr at, size_t bytes) {
  const Lock lock(mutex);
  if (inside_pages(at, bytes)) return true;
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

/// The file whose parts are the physical pages: number n at n pages from its beginning.
int pages_file() {
  static const int file = memfd_create("fake_cuda", MFD_CLOEXEC);
  return file;
}

void let_go(unsigned long long page) {
  auto& physical = fake.pages[page];
  if (--physical.holders > 0) return;
  fallocate(pages_file(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page) * fake.page_bytes,
            static_cast<off_t>(physical.bytes));
  fake.pages.erase(page);
}

/// Whether whole mappings lie side by side from `at` on, in so many bytes, and does `work` with each.
template <class Work>
bool for_mappings(CUdeviceptr at, size_t bytes, Work work) {
  const CUdeviceptr end = at + bytes;
  for (CUdeviceptr next = at; next < end; next += fake.mapped[next].bytes) {
    if (fake.mapped.count(next) == 0 || next + fake.mapped[next].bytes > end) return false;
  }
  for (auto mapping = fake.mapped.find(at); at < end; ++mapping) {
    at += mapping->second.bytes;
    work(mapping->second);
  }
  return true;
}

bool in_pages(size_t bytes) { return bytes > 0 && bytes % static_cast<size_t>(fake.page_bytes) == 0; }

bool is_reserved(CUdeviceptr at, size_t bytes) {
  auto range = fake.reserved.upper_bound(at);
  return range != fake.reserved.begin() && at + bytes <= (--range)->first + range->second;
}

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
  if (attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) {
    *value = fake.maps_pages ? 1 : 0;
    return CUDA_SUCCESS;
  }
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

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *bytes = static_cast<size_t>(fake.page_bytes);
  return needs_context();
}

CUresult cuMemAddressReserve(CUdeviceptr* at, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (fails_once(fake.page_calls_before_failure)) return CUDA_ERROR_OUT_OF_MEMORY;
  const Lock lock(mutex);
  if (!in_pages(bytes)) return CUDA_ERROR_INVALID_VALUE;
  // Nothing can be read or written there: who tries ends.
  const size_t slack = static_cast<size_t>(fake.page_bytes);
  void* data = mmap(nullptr, bytes + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto first = reinterpret_cast<CUdeviceptr>(data);
  *at = (first + slack - 1) / slack * slack;
  if (*at > first) munmap(data, *at - first);
  if (first + slack > *at) munmap(host(*at + bytes), first + slack - *at);
  fake.reserved[*at] = bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr at, size_t bytes) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  const Lock lock(mutex);
  const auto range = fake.reserved.find(at);
  const auto mapped = fake.mapped.lower_bound(at);
  if (range == fake.reserved.end() || range->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  if (mapped != fake.mapped.end() && mapped->first < at + bytes) return CUDA_ERROR_INVALID_VALUE;
  munmap(host(at), bytes);
  fake.reserved.erase(range);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* page, size_t bytes, const CUmemAllocationProp* wanted,
                     unsigned long long) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (fails_once(fake.page_calls_before_failure)) return CUDA_ERROR_OUT_OF_MEMORY;
  const Lock lock(mutex);
  const bool is_on_device =
      wanted->type == CU_MEM_ALLOCATION_TYPE_PINNED && wanted->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  if (!is_on_device || !in_pages(bytes)) return CUDA_ERROR_INVALID_VALUE;
  const auto size = static_cast<int64_t>(bytes);
  if (size > fake.total_bytes - fake.used_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
  unsigned long long number = 1;
  for (const auto& [taken, physical] : fake.pages) {
    if (number + bytes / static_cast<size_t>(fake.page_bytes) <= taken) break;
    number = taken + physical.bytes / static_cast<size_t>(fake.page_bytes);
  }
  const auto place = static_cast<off_t>(number) * fake.page_bytes;
  const std::vector<char> anything(bytes, 0x7f);
  if (pwrite(pages_file(), anything.data(), bytes, place) != size) return CUDA_ERROR_OUT_OF_MEMORY;
  fake.pages[number] = {bytes, 1};
  if (size > fake.page_bytes) ++fake.merged_pages;
  *page = number;
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle page) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  const Lock lock(mutex);
  if (fake.pages.find(page) == fake.pages.end()) return CUDA_ERROR_INVALID_VALUE;
  let_go(page);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle page, unsigned long long) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (fails_once(fake.page_calls_before_failure)) return CUDA_ERROR_OUT_OF_MEMORY;
  const Lock lock(mutex);
  const auto physical = fake.pages.find(page);
  if (physical == fake.pages.end() || bytes != physical->second.bytes || offset != 0 || !is_reserved(at, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto behind = fake.mapped.lower_bound(at);
  if (behind != fake.mapped.end() && behind->first < at + bytes) return CUDA_ERROR_INVALID_VALUE;
  if (behind != fake.mapped.begin() && std::prev(behind)->first + std::prev(behind)->second.bytes > at) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  mmap(host(at), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, pages_file(), static_cast<off_t>(page) * fake.page_bytes);
  fake.mapped[at] = {page, bytes, false};
  ++physical->second.holders;
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (fails_once(fake.page_calls_before_failure)) return CUDA_ERROR_OUT_OF_MEMORY;
  const Lock lock(mutex);
  if (!in_pages(bytes) || count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!for_mappings(at, bytes, [](auto& mapping) { mapping.is_open = true; })) return CUDA_ERROR_INVALID_VALUE;
  mprotect(host(at), bytes, PROT_READ | PROT_WRITE);
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr at, size_t bytes) {
  if (current_contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  const Lock lock(mutex);
  if (!in_pages(bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (!for_mappings(at, bytes, [](auto& mapping) { let_go(mapping.page); })) return CUDA_ERROR_INVALID_VALUE;
  fake.mapped.erase(fake.mapped.find(at), fake.mapped.lower_bound(at + bytes));
  mmap(host(at), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
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

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  if (!inside(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return copy(stream, host(to), host(from), bytes, to);
}

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
