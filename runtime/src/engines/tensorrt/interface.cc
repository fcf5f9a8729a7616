#include "engines/tensorrt/interface.h"

namespace sala::tensorrt {

namespace {

/// TensorRT 10.11 to 10.x: within a major version functions are only added, behind the others.
constexpr Interface kTensorRt10 = {
    .deserialize_cuda_engine = 3,
    .set_gpu_allocator = 8,
    .set_engine_host_code_allowed = 21,
    .create_execution_context = 5,
    .get_nb_optimization_profiles = 10,
    .get_tensor_shape = 19,
    .get_tensor_data_type = 20,
    .get_tensor_io_mode = 23,
    .get_profile_shape = 29,
    .get_nb_io_tensors = 30,
    .get_io_tensor_name = 31,
    .get_device_memory_size_for_profile = 53,
    .set_optimization_profile_async = 17,
    .set_input_shape = 21,
    .set_tensor_address = 24,
    .enqueue = 37,
    .set_device_memory = 49,
    .versioned_logger = false,
};

constexpr Interface kTensorRt11 = {
    .deserialize_cuda_engine = 3,
    .set_gpu_allocator = 7,
    .set_engine_host_code_allowed = 20,
    .create_execution_context = 5,
    .get_nb_optimization_profiles = 8,
    .get_tensor_shape = 15,
    .get_tensor_data_type = 16,
    .get_tensor_io_mode = 19,
    .get_profile_shape = 25,
    .get_nb_io_tensors = 26,
    .get_io_tensor_name = 27,
    .get_device_memory_size_for_profile = 45,
    .set_optimization_profile_async = 16,
    .set_input_shape = 20,
    .set_tensor_address = 23,
    .enqueue = 36,
    .set_device_memory = 48,
    .versioned_logger = true,
};

constexpr Interface with_runtime_cache(Interface interface) {
  interface.create_execution_context_with_runtime_config = 47;
  interface.create_runtime_config = 48;
  interface.is_stream_capturable = 52;
  interface.set_execution_context_allocation_strategy = 3;
  interface.create_runtime_cache = 5;
  interface.set_runtime_cache = 6;
  interface.set_dynamic_shapes_kernel_specialization_strategy = 8;
  interface.cache_serialize = 2;
  interface.cache_deserialize = 3;
  return interface;
}

/// TensorRT for RTX 1.6 and 1.7: as TensorRT 11, and what only TensorRT for RTX has.
constexpr Interface kTensorRtForRtx1 = with_runtime_cache(kTensorRt11);

}  // namespace

const Interface* find_interface(std::string_view flavour, int major, int minor) {
  if (flavour == "rtx" && major == 1 && (minor == 6 || minor == 7)) return &kTensorRtForRtx1;
  if (flavour == "tensorrt" && major == 10 && minor >= 11) return &kTensorRt10;
  if (flavour == "tensorrt" && major == 11) return &kTensorRt11;
  return nullptr;
}

std::string_view known_versions(std::string_view flavour) {
  return flavour == "rtx" ? "1.6 and 1.7" : "10.11 to 10.x and 11.x";
}

}  // namespace sala::tensorrt
