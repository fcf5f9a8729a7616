#include "common/counters.h"

#include <string>

namespace sala {
namespace {

/// Zeroes memory, and waits until it is zero for whoever reads it. The stream is a new one: the default stream would
/// wait for others, and may not be used while one of them is captured.
Status zero(const CudaDriver& driver, CUdeviceptr address, int64_t bytes) {
  CUstream stream = nullptr;
  SALA_RETURN_IF_ERROR(
      driver.check(driver.stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate for counters"));
  Status status = driver.check(driver.memset_d8_async(address, 0, static_cast<size_t>(bytes), stream),
                               "cuMemsetD8Async of counters");
  if (status) status = driver.check(driver.stream_synchronize(stream), "cuStreamSynchronize for counters");
  static_cast<void>(driver.stream_destroy(stream));
  return status;
}

}  // namespace

Status Counters::prepare(const CudaDriver& driver, int64_t bytes) {
  const Expected<CUdeviceptr> found = find(driver, bytes);
  if (!found) return found.error();
  if (*found != 0) return success();
  CUcontext context = nullptr;
  SALA_RETURN_IF_ERROR(driver.check(driver.ctx_get_current(&context), "cuCtxGetCurrent"));
  // Otherwise an allocation would fail while another thread captures a stream, and break that capture too.
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  SALA_RETURN_IF_ERROR(
      driver.check(driver.thread_exchange_stream_capture_mode(&mode), "cuThreadExchangeStreamCaptureMode"));
  const Status added = add(driver, context, bytes);
  const Status restored =
      driver.check(driver.thread_exchange_stream_capture_mode(&mode), "cuThreadExchangeStreamCaptureMode");
  return added ? restored : added;
}

Status Counters::add(const CudaDriver& driver, CUcontext context, int64_t bytes) {
  Block block{context, 0, bytes};
  blocks_.reserve(blocks_.size() + 1);  // so that nothing can fail once there is memory to free
  SALA_RETURN_IF_ERROR(driver.check(driver.mem_alloc(&block.address, static_cast<size_t>(bytes)),
                                    "cuMemAlloc of " + std::to_string(bytes) + " bytes of counters"));
  if (const Status zeroed = zero(driver, block.address, bytes); !zeroed) {
    static_cast<void>(driver.mem_free(block.address));
    return zeroed;
  }
  driver_ = &driver;
  blocks_.push_back(block);
  return success();
}

Expected<CUdeviceptr> Counters::find(const CudaDriver& driver, int64_t bytes) const {
  CUcontext context = nullptr;
  SALA_RETURN_IF_ERROR(driver.check(driver.ctx_get_current(&context), "cuCtxGetCurrent"));
  CUdeviceptr address = 0;
  for (const Block& block : blocks_) {
    if (block.context == context && block.bytes >= bytes) address = block.address;
  }
  return address;
}

Counters::~Counters() {
  if (blocks_.empty()) return;
  // A failure leaves nothing to do: a context that has gone took its memory along, as does the driver at process end.
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  static_cast<void>(driver_->thread_exchange_stream_capture_mode(&mode));
  for (const Block& block : blocks_) {
    if (driver_->ctx_push_current(block.context) != CUDA_SUCCESS) continue;
    static_cast<void>(driver_->mem_free(block.address));
    CUcontext popped = nullptr;
    static_cast<void>(driver_->ctx_pop_current(&popped));
  }
  static_cast<void>(driver_->thread_exchange_stream_capture_mode(&mode));
}

}  // namespace sala
