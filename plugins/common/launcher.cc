#include "common/launcher.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace sala {
namespace {

/// What there is instead of kernels for an architecture, and how to get some where that is possible.
std::string alternatives(const OperatorTable& table, int32_t sm) {
  const auto names = [](std::span<const int32_t> sms) {
    return joined(sms, [](int32_t each) { return "sm_" + std::to_string(each); });
  };
  const std::span<const int32_t> only = table.only_sms;
  if (!only.empty() && std::find(only.begin(), only.end(), sm) == only.end()) {
    return "they exist for " + names(only) + " alone";
  }
  const std::string there = table.sms.empty() ? "this library has none for any" : "supported are " + names(table.sms);
  return there + "; a library for others is built with SALA_ARCHITECTURES (docs/gpus.md)";
}

uint64_t address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

/// Device addresses by index, as kernels see them: an updated input is its output's buffer.
struct Addresses {
  std::vector<uint64_t> inputs;
  std::vector<uint64_t> outputs;
  std::vector<uint64_t> workspaces;
  std::vector<uint64_t> counters;
};

std::vector<uint64_t> placed(const Layout& layout, uint64_t start) {
  std::vector<uint64_t> addresses;
  for (const int64_t offset : layout.offsets) addresses.push_back(start + static_cast<uint64_t>(offset));
  return addresses;
}

Expected<Addresses> resolve_addresses(const Operator& op, const Call& call, const Buffers& buffers) {
  const OperatorTable& table = op.table();
  Addresses addresses;
  for (const void* input : buffers.inputs) addresses.inputs.push_back(address(input));
  for (size_t i = 0; i < buffers.outputs.size(); ++i) {
    addresses.outputs.push_back(address(buffers.outputs[i]));
    if (const int32_t updated = table.outputs[i].updates; updated != kNone) {
      addresses.inputs[updated] = addresses.outputs[i];
    }
  }
  const Layout workspaces = op.workspaces(call);
  if (workspaces.bytes > 0 && buffers.workspace == nullptr) {
    return error(table.type, ": the workspace is null, ", workspaces.bytes, " bytes are needed");
  }
  addresses.workspaces = placed(workspaces, address(buffers.workspace));
  const auto check = [&](const char* name, uint64_t at) -> Status {
    if (at % kPointerDivisor == 0) return success();
    return error(table.type, ": ", name, " is at an address that is not a multiple of ", kPointerDivisor);
  };
  for (size_t i = 0; i < table.inputs.size(); ++i) {
    SALA_RETURN_IF_ERROR(check(table.inputs[i].name, addresses.inputs[i]));
  }
  for (size_t i = 0; i < table.outputs.size(); ++i) {
    SALA_RETURN_IF_ERROR(check(table.outputs[i].name, addresses.outputs[i]));
  }
  SALA_RETURN_IF_ERROR(check("workspace", address(buffers.workspace)));
  return addresses;
}

/// The value of a kernel parameter, in the low bytes of 64 bits: the driver reads as many as the parameter has.
uint64_t value_of(const Argument& argument, const Operator& op, const Call& call, const Addresses& addresses) {
  switch (argument.kind) {
    case Argument::Kind::kInput:
      return addresses.inputs[argument.index];
    case Argument::Kind::kOutput:
      return addresses.outputs[argument.index];
    case Argument::Kind::kWorkspace:
      return addresses.workspaces[argument.index];
    case Argument::Kind::kCounter:
      return addresses.counters[argument.index];
    case Argument::Kind::kInteger:
      return static_cast<uint64_t>(call.names[argument.index]);
    case Argument::Kind::kFloat: {
      uint32_t bits = 0;
      std::memcpy(&bits, &op.floats()[argument.index], sizeof(bits));
      return bits;
    }
    case Argument::Kind::kNull:
      return 0;
  }
  return 0;
}

Status launch(const CudaDriver& driver, const Launch& launch, const Kernel& kernel, const Operator& op,
              const Call& call, const Addresses& addresses, CUstream stream) {
  std::vector<uint64_t> values;
  values.reserve(launch.arguments.size());  // pointers into it are taken
  std::vector<void*> parameters;
  for (const Argument& argument : launch.arguments) {
    values.push_back(value_of(argument, op, call, addresses));
    parameters.push_back(&values.back());
  }
  const Image& image = kernel.image();
  uint32_t grid[3];
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t blocks = image.grid[axis](call.names.data());
    if (blocks <= 0) return success();  // nothing to do, and the driver refuses an empty grid
    grid[axis] = static_cast<uint32_t>(blocks);
  }
  if (image.is_dependent && driver.launch_kernel_ex != nullptr) {
    CUlaunchAttribute attribute{};
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    const CUlaunchConfig config{grid[0], grid[1],    grid[2], image.threads, 1, 1, image.shared_bytes,
                                stream,  &attribute, 1};
    return driver.check(driver.launch_kernel_ex(&config, kernel.function(), parameters.data(), nullptr),
                        std::string("cuLaunchKernelEx of ") + launch.kernel);
  }
  return driver.check(driver.launch_kernel(kernel.function(), grid[0], grid[1], grid[2], image.threads, 1, 1,
                                           image.shared_bytes, stream, parameters.data(), nullptr),
                      std::string("cuLaunchKernel of ") + launch.kernel);
}

}  // namespace

Expected<const Launcher::Sequence*> Launcher::find_or_load(const CudaDriver& driver, const Operator& op,
                                                           const Call& call) {
  const Expected<Device> device = current_device(driver);
  if (!device) return device.error();
  const std::span<const Launch> launches = op.launches(call);
  for (const Sequence& sequence : sequences_) {
    if (sequence.device == device->ordinal && sequence.activation == call.activation &&
        sequence.launches.data() == launches.data()) {
      return &sequence;
    }
  }
  Sequence sequence{device->ordinal, call.activation, launches, {}};
  for (const Launch& launch : launches) {
    const Image* image = find_image(launch, call.activation, op.variant(), device->sm);
    if (image == nullptr) {
      return error(op.table().type, ": no kernels for this GPU (sm_", device->sm, "); ",
                   alternatives(op.table(), device->sm));
    }
    auto kernel = Kernel::get(driver, launch.kernel, *image);
    if (!kernel) return kernel.error();
    SALA_RETURN_IF_ERROR((*kernel)->prepare(launch.kernel, *device));
    sequence.kernels.push_back(*kernel);
  }
  sequences_.push_back(std::move(sequence));
  return &sequences_.back();
}

Status Launcher::prepare(const Operator& op, const Call& call) {
  const Expected<CudaDriver>& driver = cuda_driver();
  if (!driver) return driver.error();
  SALA_RETURN_IF_ERROR(find_or_load(*driver, op, call));
  const int64_t bytes = op.counters(call).bytes;
  return bytes == 0 ? success() : counters_.prepare(*driver, bytes);
}

Status Launcher::run(const Operator& op, const Call& call, std::span<const TensorView> inputs, const Buffers& buffers,
                     CUstream stream) {
  const Expected<CudaDriver>& driver = cuda_driver();
  if (!driver) return driver.error();
  const Expected<const Sequence*> sequence = find_or_load(*driver, op, call);
  if (!sequence) return sequence.error();
  Expected<Addresses> addresses = resolve_addresses(op, call, buffers);
  if (!addresses) return addresses.error();
  if (const Layout counters = op.counters(call); counters.bytes > 0) {
    const Expected<CUdeviceptr> start = counters_.find(*driver, counters.bytes);
    if (!start) return start.error();
    if (*start == 0) {
      return error(op.table().type, ": no counters for these shapes on this device; onShapeChange must come first");
    }
    addresses->counters = placed(counters, *start);
  }

  const std::span<const TensorRule> outputs = op.table().outputs;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const int32_t updated = outputs[i].updates;
    if (updated == kNone || buffers.inputs[updated] == buffers.outputs[i]) continue;
    SALA_RETURN_IF_ERROR(
        driver->check(driver->memcpy_dtod_async(address(buffers.outputs[i]), address(buffers.inputs[updated]),
                                                static_cast<size_t>(bytes_of(inputs[updated])), stream),
                      std::string("cuMemcpyDtoDAsync to ") + outputs[i].name));
  }
  for (size_t i = 0; i < (*sequence)->launches.size(); ++i) {
    SALA_RETURN_IF_ERROR(
        launch(*driver, (*sequence)->launches[i], *(*sequence)->kernels[i], op, call, *addresses, stream));
  }
  return success();
}

}  // namespace sala
