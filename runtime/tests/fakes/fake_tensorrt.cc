#include "fake_tensorrt.h"

#include <cstdlib>
#include <sstream>
#include <string>

#include "fake_objects.h"
#include "fake_step.h"

namespace {

using namespace sala::test;

Dims read_dims(std::istream& text, int32_t rank) {
  Dims dims{rank, {}};
  for (int32_t i = 0; i < rank; ++i) text >> dims.extents[i];
  return dims;
}

Engine* read_plan(const char* data, size_t bytes) {
  std::istringstream text(std::string(data, bytes));
  std::string word;
  text >> word;
  if (word != "fake-plan") return nullptr;
  auto* engine = new Engine();
  while (text >> word && word != "end") {
    if (word == "activation") {
      text >> engine->activation_bytes[0] >> engine->activation_bytes[1];
      continue;
    }
    Tensor tensor{};
    int32_t rank = 0;
    text >> tensor.mode >> tensor.name >> tensor.dtype >> rank;
    tensor.dims = read_dims(text, rank);
    const bool has_profiles = tensor.mode == kInputTensor && tensor.is_dynamic();
    for (Dims& largest : tensor.largest) largest = has_profiles ? read_dims(text, rank) : Dims{-1, {}};
    engine->tensors.push_back(tensor);
  }
  return engine;
}

void* deserialize(void* implementation, const void* data, size_t bytes) {
  if (!fake.deserialize_error.empty()) {
    log_error(fake.deserialize_error);
    return nullptr;
  }
  if (!Runtime::of(implementation).host_code_allowed) {
    log_error("host code is not allowed");
    return nullptr;
  }
  Engine* engine = read_plan(static_cast<const char*>(data), bytes);
  if (engine == nullptr) {
    log_error("not a plan");
    return nullptr;
  }
  record("deserialize");
  return engine;
}

void* create_context(Engine& engine, bool is_user_managed) {
  if (!fake.context_error.empty()) {
    log_error(fake.context_error);
    return nullptr;
  }
  auto* context = new Context();
  context->engine = &engine;
  context->is_user_managed = is_user_managed;
  return context;
}

bool set_input_shape(void* implementation, const char* name, const Dims* dims) {
  Context& context = Context::of(implementation);
  const Tensor& tensor = context.engine->tensor(name);
  if (!tensor.is_dynamic()) return refuse(std::string(name) + " has a shape of its own");
  const Dims& largest = tensor.largest[context.profile];
  if (dims->count != largest.count) return refuse(std::string("wrong rank of ") + name);
  for (int32_t i = 0; i < dims->count; ++i) {
    if (dims->extents[i] < 1 || dims->extents[i] > largest.extents[i]) {
      return refuse(std::string(name) + " is outside of the profile");
    }
  }
  context.shapes[name] = *dims;
  return true;
}

void place_runtime_functions() {
  Runtime::set(interface->deserialize_cuda_engine, &deserialize);
  Runtime::set(interface->set_gpu_allocator, [](void*, void* allocator) { fake.allocator = allocator; });
  Runtime::set(interface->set_engine_host_code_allowed, [](void* implementation, bool allowed) {
    Runtime::of(implementation).host_code_allowed = allowed;
    record(std::string("host code ") + (allowed ? "allowed" : "refused"));
  });
  HostMemory::set(sala::tensorrt::kHostMemoryData,
                  [](void* implementation) -> void* { return HostMemory::of(implementation).bytes.data(); });
  HostMemory::set(sala::tensorrt::kHostMemorySize,
                  [](void* implementation) { return HostMemory::of(implementation).bytes.size(); });
  // IHostMemory::type, which the bindings ask for: DataType::kUINT8.
  HostMemory::set(sala::tensorrt::Function<int32_t()>(4), [](void*) { return 5; });
}

void place_engine_functions() {
  Engine::set(interface->create_execution_context, [](void* implementation, int32_t strategy) {
    record("context");
    return create_context(Engine::of(implementation), strategy == sala::tensorrt::kUserManaged);
  });
  Engine::set(interface->create_execution_context_with_runtime_config, [](void* implementation, void* object) {
    const Config& config = *static_cast<Config*>(object);
    record("context specialization " + std::to_string(config.specialization) + " cached " +
           std::to_string(config.cache != nullptr));
    if (config.cache != nullptr) ++config.cache->compiled;
    return create_context(Engine::of(implementation), config.strategy == sala::tensorrt::kUserManaged);
  });
  Engine::set(interface->create_runtime_config, [](void*) -> void* { return new Config(); });
  Engine::set(interface->get_nb_optimization_profiles, [](void*) -> int32_t { return 2; });
  Engine::set(interface->get_tensor_shape,
              [](void* implementation, const char* name) { return Engine::of(implementation).tensor(name).dims; });
  Engine::set(interface->get_tensor_data_type,
              [](void* implementation, const char* name) { return Engine::of(implementation).tensor(name).dtype; });
  Engine::set(interface->get_tensor_io_mode,
              [](void* implementation, const char* name) { return Engine::of(implementation).tensor(name).mode; });
  Engine::set(interface->get_profile_shape, [](void* implementation, const char* name, int32_t profile, int32_t) {
    return Engine::of(implementation).tensor(name).largest[profile];
  });
  Engine::set(interface->get_nb_io_tensors,
              [](void* implementation) { return static_cast<int32_t>(Engine::of(implementation).tensors.size()); });
  Engine::set(interface->get_io_tensor_name, [](void* implementation, int32_t index) {
    return Engine::of(implementation).tensors[static_cast<size_t>(index)].name.c_str();
  });
  Engine::set(interface->get_device_memory_size_for_profile, [](void* implementation, int32_t profile) {
    return Engine::of(implementation).activation_bytes[profile];
  });
}

void place_context_functions() {
  Context::set(interface->set_optimization_profile_async, [](void* implementation, int32_t profile, void*) {
    Context::of(implementation).profile = profile;
    record("profile " + std::to_string(profile));
    return true;
  });
  Context::set(interface->set_input_shape, &set_input_shape);
  Context::set(interface->set_tensor_address, [](void* implementation, const char* name, void* data) {
    Context& context = Context::of(implementation);
    context.addresses[context.engine->tensor(name).name] = data;
    return true;
  });
  Context::set(interface->enqueue, &enqueue);
  Context::set(interface->set_device_memory, [](void* implementation, void* memory, int64_t bytes) {
    Context::of(implementation).memory = static_cast<char*>(memory);
    Context::of(implementation).memory_bytes = bytes;
    record("device memory " + std::to_string(bytes));
  });
  Context::set(interface->is_stream_capturable, [](void*, void*) {
    record("is stream capturable");
    return fake.capturable;
  });
}

void place_cache_functions() {
  Config::set(interface->set_execution_context_allocation_strategy,
              [](void* implementation, int32_t strategy) { Config::of(implementation).strategy = strategy; });
  Config::set(interface->create_runtime_cache, [](void*) -> void* { return new Cache(); });
  Config::set(interface->set_runtime_cache, [](void* implementation, const void* cache) {
    Config::of(implementation).cache = const_cast<Cache*>(static_cast<const Cache*>(cache));
    record("runtime cache");
    return true;
  });
  Config::set(interface->set_dynamic_shapes_kernel_specialization_strategy, [](void* implementation, int32_t strategy) {
    Config::of(implementation).specialization = strategy;
    record("specialization " + std::to_string(strategy));
  });
  Cache::set(interface->cache_serialize, [](void* implementation) -> void* {
    auto* memory = new HostMemory();
    memory->bytes = "compiled " + std::to_string(Cache::of(implementation).compiled);
    return memory;
  });
  Cache::set(interface->cache_deserialize, [](void* implementation, const void* data, size_t bytes) {
    const std::string text(static_cast<const char*>(data), bytes);
    if (!text.starts_with("compiled ")) return false;
    Cache::of(implementation).compiled = std::atoi(text.c_str() + 9);
    record("cache read");
    return true;
  });
}

}  // namespace

extern "C" {

FakeTensorRt* fake_tensorrt() { return &fake; }

int32_t getInferLibMajorVersion() { return fake.version[0]; }
int32_t getInferLibMinorVersion() { return fake.version[1]; }
int32_t getInferLibPatchVersion() { return fake.version[2]; }
int32_t getInferLibBuildVersion() { return fake.version[3]; }
int32_t getInferLibVersion() { return fake.version[0] * 10000 + fake.version[1] * 100 + fake.version[2]; }

void* createInferRuntime_INTERNAL(void* given, int32_t) {
  if (fake.no_runtime) return nullptr;
  interface = sala::tensorrt::find_interface(fake.flavour, fake.version[0], fake.version[1]);
  logger = given;
  place_runtime_functions();
  place_engine_functions();
  place_context_functions();
  place_cache_functions();
  record("runtime");
  return new Runtime();
}

// For tests in Python.
void fake_tensorrt_be(const char* flavour, int major, int minor, int patch, int build) {
  fake.flavour = flavour;
  fake.version[0] = major;
  fake.version[1] = minor;
  fake.version[2] = patch;
  fake.version[3] = build;
}

const char* fake_tensorrt_events() {
  static std::string text;
  text.clear();
  for (const std::string& event : fake.events) text += event + "\n";
  return text.c_str();
}

/// Calls the given IGpuAllocator as TensorRT does, at the positions that allocator.h has.
void fake_tensorrt_use_allocator() {
  void** functions = *static_cast<void***>(fake.allocator);
  const auto allocate = reinterpret_cast<void* (*)(void*, uint64_t, uint64_t, uint32_t)>(functions[4]);
  const auto deallocate = reinterpret_cast<bool (*)(void*, void*)>(functions[6]);
  const auto allocate_async = reinterpret_cast<void* (*)(void*, uint64_t, uint64_t, uint32_t, void*)>(functions[7]);
  const auto deallocate_async = reinterpret_cast<bool (*)(void*, void*, void*)>(functions[8]);
  deallocate(fake.allocator, allocate(fake.allocator, 1000, 256, 0));
  deallocate_async(fake.allocator, allocate_async(fake.allocator, 2000, 256, 0, nullptr), nullptr);
}

// NVIDIA's Python bindings ask for these when they are loaded.
void* createInferBuilder_INTERNAL(void*, int32_t) { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int32_t) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
int32_t getNvOnnxParserVersion() { return 0; }
void* getPluginRegistry() { return nullptr; }
void* getBuilderPluginRegistry(int32_t) { return nullptr; }
bool initLibNvInferPlugins(void*, const char*) { return true; }

}  // extern "C"
