// The part of TensorRT's binary interface that the engine uses.
//
// No header serves every library that a bundle may ask for: TensorRT 10 and 11 order their virtual functions
// differently, TensorRT for RTX 1.7 as TensorRT 11 does, and only NVIDIA's own RTX SDK describes the runtime cache. So
// the positions are written down here, for the versions for which they were proved: against the open headers
// (runtime/tests/tensorrt_interface_test.cc) and against NVIDIA's own Python bindings of each version, which are
// compiled with its header (tests/runtime/test_tensorrt_interface.py). TensorRT for RTX 1.6 alone rests on its
// published header: its bindings were not run. Another version is refused.
//
// Objects of TensorRT are two pointers: to a table whose second entry destroys the object, and to an implementation
// whose table holds the functions. Positions count from the start of the implementation's table (Itanium C++ ABI).

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

namespace sala::tensorrt {

/// A virtual function of an object of TensorRT, for example `Function<bool(const char*, void*)>`: where a version has
/// it in the table of its class. False if the version lacks it.
template <class Signature>
class Function;

template <class Result, class... Arguments>
class Function<Result(Arguments...)> {
 public:
  constexpr Function() = default;
  constexpr Function(int position) : position_(position) {}

  constexpr explicit operator bool() const { return position_ >= 0; }
  constexpr int position() const { return position_; }

  /// Calls the function of `object`. The arguments are converted to the types of the signature.
  Result operator()(void* object, Arguments... arguments) const {
    void* implementation = static_cast<void**>(object)[1];
    void* function = (*static_cast<void***>(implementation))[position_];
    return reinterpret_cast<Result (*)(void*, Arguments...)>(function)(implementation, arguments...);
  }

 private:
  int position_ = -1;
};

struct Dims {
  int32_t count;
  int64_t extents[8];
};

/// The functions of a version, named as in TensorRT's headers. An object of TensorRT is a void pointer here, an
/// enumeration the integer below it, and a reference a pointer. A version may lack those with `= {}`.
struct Interface {
  // IRuntime
  Function<void*(const void* plan, size_t bytes)> deserialize_cuda_engine;
  Function<void(void* allocator)> set_gpu_allocator;
  Function<void(bool allowed)> set_engine_host_code_allowed;

  // ICudaEngine
  Function<void*(int32_t strategy)> create_execution_context;
  Function<int32_t()> get_nb_optimization_profiles;
  Function<Dims(const char* name)> get_tensor_shape;
  Function<int32_t(const char* name)> get_tensor_data_type;
  Function<int32_t(const char* name)> get_tensor_io_mode;
  Function<Dims(const char* name, int32_t profile, int32_t selector)> get_profile_shape;
  Function<int32_t()> get_nb_io_tensors;
  Function<const char*(int32_t index)> get_io_tensor_name;
  Function<int64_t(int32_t profile)> get_device_memory_size_for_profile;
  Function<void*(void* config)> create_execution_context_with_runtime_config = {};
  Function<void*()> create_runtime_config = {};

  // IExecutionContext
  Function<bool(int32_t profile, void* stream)> set_optimization_profile_async;
  Function<bool(const char* name, const Dims* dims)> set_input_shape;
  Function<bool(const char* name, void* data)> set_tensor_address;
  Function<bool(void* stream)> enqueue;
  Function<void(void* memory, int64_t bytes)> set_device_memory;
  Function<bool(void* stream)> is_stream_capturable = {};

  // IRuntimeConfig
  Function<void(int32_t strategy)> set_execution_context_allocation_strategy = {};
  Function<void*()> create_runtime_cache = {};
  Function<bool(const void* cache)> set_runtime_cache = {};
  Function<void(int32_t strategy)> set_dynamic_shapes_kernel_specialization_strategy = {};

  // IRuntimeCache
  Function<void*()> cache_serialize = {};
  Function<bool(const void* data, size_t bytes)> cache_deserialize = {};

  bool versioned_logger = false;  // ILogger derives from IVersionedInterface

  bool has_runtime_cache() const { return static_cast<bool>(create_runtime_cache); }
};

// IHostMemory has the same functions in every version that is known.
constexpr Function<void*()> kHostMemoryData = 2;
constexpr Function<size_t()> kHostMemorySize = 3;

/// The interface of a version; null if its positions are not known. `flavour` as in bundle.json.
const Interface* find_interface(std::string_view flavour, int major, int minor);

/// The versions that `find_interface` knows of a flavour, for messages.
std::string_view known_versions(std::string_view flavour);

// Values of TensorRT's enumerations.
constexpr int32_t kMaxShape = 2;             // OptProfileSelector
constexpr int32_t kUserManaged = 2;          // ExecutionContextAllocationStrategy
constexpr int32_t kEagerSpecialization = 1;  // DynamicShapesKernelSpecializationStrategy
constexpr int32_t kInputTensor = 1;          // TensorIOMode
constexpr int32_t kOutputTensor = 2;

struct Destroy {
  void operator()(void* object) const { reinterpret_cast<void (*)(void*)>((*static_cast<void***>(object))[1])(object); }
};

/// Owns an object that TensorRT made.
using Object = std::unique_ptr<void, Destroy>;

}  // namespace sala::tensorrt
