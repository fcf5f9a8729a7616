#include "engines/tensorrt/step_buffers.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "sala/step_names.h"

namespace sala::tensorrt {

namespace {

// TensorRT wants 256 for activations, vector loads of kernels 16.
constexpr int64_t kAlignment = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t io_bytes(const StepBufferSizes& sizes) {
  int64_t bytes = aligned(sizes.logits.bytes);
  for (const auto& part : sizes.inputs) bytes += aligned(part.bytes);
  return bytes;
}

Status allocate(Memory& memory, int64_t bytes, Buffer& to) {
  auto buffer = memory.allocate(bytes);
  if (!buffer) return buffer.error();
  to = *std::move(buffer);
  return success();
}

}  // namespace

Expected<std::shared_ptr<StepBuffers>> StepBuffers::create(cuda::DeviceMemory& device, cuda::PinnedMemory& pinned,
                                                           const StepBufferSizes& sizes) {
  auto buffers = std::make_shared<StepBuffers>(device, pinned);
  SALA_RETURN_IF_ERROR(allocate(device, io_bytes(sizes), buffers->device_io_));
  SALA_RETURN_IF_ERROR(allocate(pinned, io_bytes(sizes), buffers->host_io_));
  SALA_RETURN_IF_ERROR(allocate(device, sizes.activation_bytes, buffers->activations_));

  int64_t offset = 0;
  const auto place = [&](const StepBufferSizes::Part& part) {
    buffers->places_[part.name] = {static_cast<char*>(buffers->device_io_.data()) + offset,
                                   static_cast<char*>(buffers->host_io_.data()) + offset, part.bytes};
    offset += aligned(part.bytes);
  };
  for (const auto& part : sizes.inputs) place(part);
  place(sizes.logits);
  return buffers;
}

Status StepBuffers::reserve_logits(int64_t bytes) {
  if (bytes <= std::max(capacity(step_names::kLogits), host_rows_.bytes())) return success();
  Buffer device, host;
  SALA_RETURN_IF_ERROR(allocate(device_memory_, bytes, device));
  SALA_RETURN_IF_ERROR(allocate(pinned_, bytes, host));
  device_rows_ = std::move(device);
  host_rows_ = std::move(host);
  return success();
}

void* StepBuffers::device_logits(int64_t bytes) const {
  return bytes <= capacity(step_names::kLogits) ? device(step_names::kLogits) : device_rows_.data();
}

void* StepBuffers::host_logits(int64_t bytes) const {
  return bytes <= capacity(step_names::kLogits) ? host(step_names::kLogits) : host_rows_.data();
}

void StepBuffers::clear_inputs() { std::memset(host_io_.data(), 0, static_cast<size_t>(host_io_.bytes())); }

void* StepBuffers::device(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : found->second.device;
}

void* StepBuffers::host(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : found->second.host;
}

int64_t StepBuffers::capacity(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? 0 : found->second.bytes;
}

}  // namespace sala::tensorrt
