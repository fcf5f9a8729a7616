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

constexpr int kAbsent = -1;

/// Positions of functions in their tables, named as in TensorRT's headers; kAbsent where a version lacks one.
struct Interface {
  int deserialize_cuda_engine;  // IRuntime
  int set_gpu_allocator;
  int set_engine_host_code_allowed;

  int create_execution_context;  // ICudaEngine
  int get_nb_optimization_profiles;
  int get_tensor_shape;
  int get_tensor_data_type;
  int get_tensor_io_mode;
  int get_profile_shape;
  int get_nb_io_tensors;
  int get_io_tensor_name;
  int get_device_memory_size_for_profile;
  int create_execution_context_with_runtime_config;
  int create_runtime_config;

  int set_optimization_profile_async;  // IExecutionContext
  int set_input_shape;
  int set_tensor_address;
  int enqueue;
  int set_device_memory;
  int is_stream_capturable;

  int set_execution_context_allocation_strategy;  // IRuntimeConfig
  int create_runtime_cache;
  int set_runtime_cache;
  int set_dynamic_shapes_kernel_specialization_strategy;

  int cache_serialize;  // IRuntimeCache
  int cache_deserialize;

  bool versioned_logger;  // ILogger derives from IVersionedInterface

  bool has_runtime_cache() const { return create_runtime_cache != kAbsent; }
};

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

struct Dims {
  int32_t count;
  int64_t extents[8];
};

/// Calls a function of an object's implementation.
template <class Result, class... Arguments>
Result call(void* object, int position, Arguments... arguments) {
  void* implementation = static_cast<void**>(object)[1];
  void* function = (*static_cast<void***>(implementation))[position];
  return reinterpret_cast<Result (*)(void*, Arguments...)>(function)(implementation, arguments...);
}

struct Destroy {
  void operator()(void* object) const { reinterpret_cast<void (*)(void*)>((*static_cast<void***>(object))[1])(object); }
};

/// Owns an object that TensorRT made.
using Object = std::unique_ptr<void, Destroy>;

}  // namespace sala::tensorrt
