// A libcuda.so.1 that computes nothing and records what it is asked. Kernel parameters are read as a cubin's own
// metadata declares them, so that a launch with too few or too narrow arguments cannot pass unseen.

#include "fake_cuda.h"

#include <elf.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct FakeKernel {
  std::string name;
  int sm = 0;
  std::map<uint32_t, uint32_t> parameter_bytes;  // by ordinal
  unsigned int allowed_shared_bytes = 48 * 1024;
};

int device_sm = 0;
std::string taken;

/// Made by its first use, which may be another file's initialisation.
std::vector<std::string>& events() {
  static std::vector<std::string> all;
  return all;
}

const char* bytes_at(const void* image, uint64_t offset) { return static_cast<const char*>(image) + offset; }

template <class T>
T read(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

/// Reads the section .nv.info.<kernel>: records of format, attribute, and for format 4 a length with that many bytes.
/// Attribute 0x17 describes a parameter: ordinal at byte 4, its size from bit 18 of the word at byte 8.
void read_parameters(const char* at, const char* end, FakeKernel& kernel) {
  constexpr uint8_t kSized = 4;
  constexpr uint8_t kParameter = 0x17;
  while (at < end) {
    const auto format = read<uint8_t>(at);
    const auto attribute = read<uint8_t>(at + 1);
    const auto length = read<uint16_t>(at + 2);
    at += 4;
    if (format != kSized) continue;
    if (attribute == kParameter) kernel.parameter_bytes[read<uint16_t>(at + 4)] = read<uint32_t>(at + 8) >> 18;
    at += length;
  }
}

/// The kernel of a cubin, which holds exactly one.
FakeKernel parse_cubin(const void* image) {
  FakeKernel kernel;
  const auto header = read<Elf64_Ehdr>(bytes_at(image, 0));
  // ABI version 8 keeps the architecture in the second byte of the flags, earlier ones in the first.
  kernel.sm = (header.e_ident[EI_ABIVERSION] >= 8 ? header.e_flags >> 8 : header.e_flags) & 0xff;
  const auto section = [&](size_t i) {
    return read<Elf64_Shdr>(bytes_at(image, header.e_shoff + i * header.e_shentsize));
  };
  const Elf64_Shdr names = section(header.e_shstrndx);
  const std::string prefix = ".nv.info.";
  for (size_t i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr info = section(i);
    const std::string name = bytes_at(image, names.sh_offset + info.sh_name);
    if (name.compare(0, prefix.size(), prefix) != 0) continue;
    kernel.name = name.substr(prefix.size());
    read_parameters(bytes_at(image, info.sh_offset), bytes_at(image, info.sh_offset + info.sh_size), kernel);
  }
  return kernel;
}

FakeKernel* kernel_of(const void* handle) { return static_cast<FakeKernel*>(const_cast<void*>(handle)); }

/// "kernel": ..., "sm": ...
std::string described(const FakeKernel& kernel) {
  return "\"kernel\": \"" + kernel.name + "\", \"sm\": " + std::to_string(kernel.sm);
}

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
CUresult record(const char* event, const Parts&... parts) {
  fake_cuda_record(event, joined(parts...));
  return CUDA_SUCCESS;
}

}  // namespace

void fake_cuda_set_sm(int sm) { device_sm = sm; }

void fake_cuda_record(const std::string& event, const std::string& members) {
  events().push_back("{\"event\": \"" + event + "\", " + members + "}");
}

const char* fake_cuda_take_events() {
  taken = "[";
  for (const std::string& event : events()) taken += (taken.size() > 1 ? ", " : "") + event;
  taken += "]";
  events().clear();
  return taken.c_str();
}

extern "C" {

CUresult cuDriverGetVersion(int* version) {
  *version = FAKE_CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice /*device*/) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = device_sm / 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = device_sm % 10;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned int, CUlibraryOption*,
                           void**, unsigned int) {
  auto* kernel = new FakeKernel(parse_cubin(image));
  *library = reinterpret_cast<CUlibrary>(kernel);
  return record("load", described(*kernel));
}

CUresult cuLibraryUnload(CUlibrary library) {
  const FakeKernel* kernel = kernel_of(library);
  const CUresult result = record("unload", described(*kernel));
  delete kernel;
  return result;
}

CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  if (kernel_of(library)->name != name) return CUDA_ERROR_NOT_FOUND;
  *kernel = reinterpret_cast<CUkernel>(library);
  return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  *function = reinterpret_cast<CUfunction>(kernel);
  return record("prepare", described(*kernel_of(kernel)));
}

#if FAKE_CUDA_VERSION >= 12040
CUresult cuFuncLoad(CUfunction function) { return record("load_function", described(*kernel_of(function))); }
#endif

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = 0;
  return record("get_attribute", described(*kernel_of(function)), ", \"attribute\": ", static_cast<int>(attribute));
}

/// The size alone: nobody asks the fake for an offset.
CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t* /*offset*/, size_t* size) {
  const auto& parameters = kernel_of(function)->parameter_bytes;
  const auto found = parameters.find(static_cast<uint32_t>(index));
  if (found == parameters.end()) return CUDA_ERROR_INVALID_VALUE;
  *size = found->second;
  return CUDA_SUCCESS;
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice /*device*/) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  kernel_of(kernel)->allowed_shared_bytes = static_cast<unsigned int>(value);
  return record("allow_shared", described(*kernel_of(kernel)), ", \"bytes\": ", value);
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream stream, void** parameters, void** extra) {
  const CUlaunchConfig config{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, nullptr, 0};
  return cuLaunchKernelEx(&config, function, parameters, extra);
}

/// Knows one attribute: that the launch is dependent.
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  const FakeKernel& kernel = *kernel_of(function);
  if (extra != nullptr || config->sharedMemBytes > kernel.allowed_shared_bytes) return CUDA_ERROR_INVALID_VALUE;
  const bool is_dependent = config->numAttrs == 1 &&
                            config->attrs->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
                            config->attrs->value.programmaticStreamSerializationAllowed == 1;
  if (config->numAttrs > 0 && !is_dependent) return CUDA_ERROR_INVALID_VALUE;
  std::ostringstream arguments;
  for (const auto& [ordinal, bytes] : kernel.parameter_bytes) {
    uint64_t value = 0;
    std::memcpy(&value, parameters[ordinal], std::min<size_t>(bytes, sizeof(value)));
    arguments << (ordinal == 0 ? "" : ", ") << "[" << bytes << ", " << value << "]";
  }
  return fake_cuda_submit(
      config->hStream, "launch",
      joined(described(kernel), ", \"grid\": [", config->gridDimX, ", ", config->gridDimY, ", ", config->gridDimZ,
             "], \"block\": [", config->blockDimX, ", ", config->blockDimY, ", ", config->blockDimZ,
             "], \"shared_bytes\": ", config->sharedMemBytes, ", \"is_dependent\": ", is_dependent ? "true" : "false",
             ", \"stream\": ", reinterpret_cast<uint64_t>(config->hStream), ", \"arguments\": [", arguments.str(), "]"),
      [] {});
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return fake_cuda_submit(stream, "copy",
                          joined("\"to\": ", to, ", \"from\": ", from, ", \"bytes\": ", bytes,
                                 ", \"stream\": ", reinterpret_cast<uint64_t>(stream)),
                          [=] { fake_cuda_copy(to, from, bytes); });
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_NOT_FOUND ? "named symbol not found" : "invalid argument";
  return CUDA_SUCCESS;
}

}  // extern "C"
