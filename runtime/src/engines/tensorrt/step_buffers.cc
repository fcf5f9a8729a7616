#include "engines/tensorrt/step_buffers.h"

#include <algorithm>
#include <utility>

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

int64_t largest_stream(const StepBufferSizes& sizes) {
  int64_t bytes = 0;
  for (const auto& part : sizes.streams) bytes = std::max(bytes, part.bytes);
  return bytes;
}

/// Two shards hand over once and need one buffer.
size_t stream_buffers(const StepBufferSizes& sizes) { return std::min<size_t>(sizes.streams.size(), 2); }

}  // namespace

int64_t StepBufferSizes::device_bytes() const {
  return io_bytes(*this) + static_cast<int64_t>(stream_buffers(*this)) * largest_stream(*this) + activation_bytes;
}

Expected<std::unique_ptr<StepBuffers>> StepBuffers::create(DeviceMemory& device, PinnedMemory& pinned,
                                                           const StepBufferSizes& sizes) {
  auto buffers = std::make_unique<StepBuffers>();
  const auto allocate = [](Memory& memory, int64_t bytes, Buffer& to) -> Status {
    auto buffer = memory.allocate(bytes);
    if (!buffer) return buffer.error();
    to = *std::move(buffer);
    return success();
  };
  SALA_RETURN_IF_ERROR(allocate(device, io_bytes(sizes), buffers->device_io_));
  SALA_RETURN_IF_ERROR(allocate(pinned, io_bytes(sizes), buffers->host_io_));
  for (size_t i = 0; i < stream_buffers(sizes); ++i) {
    SALA_RETURN_IF_ERROR(allocate(device, largest_stream(sizes), buffers->streams_[i]));
  }
  SALA_RETURN_IF_ERROR(allocate(device, sizes.activation_bytes, buffers->activations_));

  int64_t offset = 0;
  const auto place = [&](const StepBufferSizes::Part& part) {
    buffers->places_[part.name] = {static_cast<char*>(buffers->device_io_.data()) + offset,
                                   static_cast<char*>(buffers->host_io_.data()) + offset, part.bytes};
    offset += aligned(part.bytes);
  };
  for (const auto& part : sizes.inputs) place(part);
  place(sizes.logits);
  for (size_t i = 0; i < sizes.streams.size(); ++i) {
    buffers->places_[sizes.streams[i].name] = {buffers->streams_[i % 2].data(), nullptr, sizes.streams[i].bytes};
  }
  return buffers;
}

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
