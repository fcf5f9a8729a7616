#include "fake_tensorrt.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <utility>

#include "engines/tensorrt/interface.h"
#include "mock_step.h"

namespace {

using sala::tensorrt::Dims;
using sala::tensorrt::Interface;
using sala::tensorrt::kInputTensor;
using sala::tensorrt::kOutputTensor;
using namespace sala::test;

constexpr int kPositions = 80;
using Table = std::array<void*, kPositions>;

FakeTensorRt fake;
const Interface* interface = nullptr;
void* logger = nullptr;

void record(const std::string& event) { fake.events.push_back(event); }

void log_error(const std::string& message) {
  const int position = interface->versioned_logger ? 4 : 0;
  reinterpret_cast<void (*)(void*, int32_t, const char*)>((*static_cast<void***>(logger))[position])(logger, 1,
                                                                                                     message.c_str());
}

bool refuse(const std::string& message) {
  log_error(message);
  return false;
}

template <class T, int Position>
void unexpected() {
  std::fprintf(stderr, "the fake TensorRT was called at position %d of %s\n", Position, T::kName);
  std::abort();
}

template <class T, int... Positions>
Table unexpected_table(std::integer_sequence<int, Positions...>) {
  return {reinterpret_cast<void*>(&unexpected<T, Positions>)...};
}

/// An object as TensorRT's are: two pointers, to a table that destroys it and to an implementation.
template <class T>
struct Object {
  void** destroy_table = &destroyers[2];
  void* implementation = &functions;
  void** functions = T::table().data();

  Object() { ++fake.objects; }
  ~Object() { --fake.objects; }

  static T& of(void* implementation) {
    return *reinterpret_cast<T*>(static_cast<char*>(implementation) - offsetof(Object, functions));
  }
  static void destroy(void* object) { delete static_cast<T*>(object); }
  // Before a table stand its object's offset and type, which is none here.
  static inline void* destroyers[4] = {nullptr, nullptr, nullptr, reinterpret_cast<void*>(&destroy)};

  static Table& table() {
    static Table functions = unexpected_table<T>(std::make_integer_sequence<int, kPositions>());
    return functions;
  }
  template <class Function>
  static void set(int position, Function* function) {
    if (position != sala::tensorrt::kAbsent) table()[static_cast<size_t>(position)] = reinterpret_cast<void*>(function);
  }
};

struct HostMemory : Object<HostMemory> {
  static constexpr const char* kName = "IHostMemory";
  std::string bytes;
};

struct Cache : Object<Cache> {
  static constexpr const char* kName = "IRuntimeCache";
  int compiled = 0;
};

struct Config : Object<Config> {
  static constexpr const char* kName = "IRuntimeConfig";
  int32_t strategy = 0;
  int32_t specialization = 0;
  Cache* cache = nullptr;
};

struct Tensor {
  int32_t mode;
  std::string name;
  int32_t dtype;
  Dims dims;
  Dims largest[2];  // by profile; of dynamic inputs alone

  bool is_dynamic() const {
    return std::any_of(dims.extents, dims.extents + dims.count, [](int64_t extent) { return extent < 0; });
  }

  /// Bytes of a static tensor.
  int64_t bytes() const {
    int64_t elements = 1;
    for (int32_t i = 0; i < dims.count; ++i) elements *= dims.extents[i];
    switch (dtype) {
      case 0:  // FLOAT
        return 4 * elements;
      case 1:  // HALF
      case 7:  // BF16
        return 2 * elements;
      case 10:  // FP4
        return elements / 2;
      default:  // INT8, FP8
        return elements;
    }
  }
};

struct Engine : Object<Engine> {
  static constexpr const char* kName = "ICudaEngine";
  std::vector<Tensor> tensors;
  int64_t activation_bytes[2] = {0, 0};

  const Tensor& tensor(const char* name) const {
    for (const Tensor& each : tensors) {
      if (each.name == name) return each;
    }
    std::fprintf(stderr, "the fake TensorRT has no tensor %s\n", name);
    std::abort();
  }
};

struct Context : Object<Context> {
  static constexpr const char* kName = "IExecutionContext";
  Engine* engine = nullptr;
  bool is_user_managed = false;
  int32_t profile = 0;
  char* memory = nullptr;
  int64_t memory_bytes = 0;
  std::map<std::string, void*> addresses;
  std::map<std::string, Dims> shapes;
};

struct Runtime : Object<Runtime> {
  static constexpr const char* kName = "IRuntime";
  bool host_code_allowed = false;
};

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

// --- What a step needs, and what it does
// ------------------------------------------------------------------------------

bool is_weight(const Tensor& tensor) { return tensor.mode == kInputTensor && !tensor.is_dynamic(); }

bool check_step(const Context& context) {
  const Engine& engine = *context.engine;
  const auto address = [&](const std::string& name) {
    const auto found = context.addresses.find(name);
    return found == context.addresses.end() ? nullptr : found->second;
  };
  if (!context.is_user_managed || context.memory == nullptr ||
      context.memory_bytes < engine.activation_bytes[context.profile]) {
    return refuse("activation memory is too small");
  }
  for (const Tensor& tensor : engine.tensors) {
    if (address(tensor.name) == nullptr) return refuse("no address of " + tensor.name);
    if (is_weight(tensor)) {
      if (reinterpret_cast<uintptr_t>(address(tensor.name)) % 256 != 0) return refuse(tensor.name + " is not aligned");
    } else if (tensor.mode == kInputTensor && !context.shapes.contains(tensor.name)) {
      return refuse("no shape of " + tensor.name);
    }
    if (tensor.mode == kOutputTensor && tensor.name.starts_with("present.") &&
        address(tensor.name) != address("past_key_values." + tensor.name.substr(8))) {
      return refuse(tensor.name + " has another address than its past");
    }
  }
  return true;
}

/// What kernels were given when they were launched.
struct Launch {
  std::map<std::string, void*> addresses;
  std::map<std::string, Dims> shapes;
  std::vector<std::pair<const void*, int64_t>> weights;  // addresses and bytes, in the plan's order
  char* memory;
  int64_t memory_bytes;

  explicit Launch(const Context& context)
      : addresses(context.addresses),
        shapes(context.shapes),
        memory(context.memory),
        memory_bytes(context.engine->activation_bytes[context.profile]) {
    for (const Tensor& tensor : context.engine->tensors) {
      if (is_weight(tensor)) weights.emplace_back(addresses.at(tensor.name), tensor.bytes());
    }
  }

  template <class T>
  T* at(const std::string& name) const {
    return static_cast<T*>(addresses.at(name));
  }
  MockRows rows(const std::string& name) const {
    const std::string past = "past_key_values." + name;
    return {at<float>(past), shapes.at(past).extents[2]};
  }

  void run() const {
    const int64_t past = *at<int32_t>("past_length");
    const int64_t* ids = at<int64_t>("input_ids");
    const int64_t tokens = shapes.at("input_ids").extents[1];
    float* state = at<float>("past_key_values.0.state");
    const MockCaches caches{rows("1.key"), rows("1.value"), rows("1.k1"), rows("1.k2")};
    for (int64_t t = 0; t < tokens; ++t) {
      mock_state(state, ids[t], at<float>("rope_cos_sin")[2 * t + 1], *at<int32_t>("context_length"));
      mock_caches(caches, past + t, ids[t]);
    }
    int64_t mixed = 0;
    for (const auto& [data, bytes] : weights) mixed = mock_weight(mixed, data, bytes);
    mock_logits(state, caches, past + tokens, mixed, at<float>("logits"));
    // Activations are anybody's between steps.
    std::memset(memory, 0xa5, static_cast<size_t>(memory_bytes));
  }
};

bool enqueue(void* implementation, void* stream) {
  const Context& context = Context::of(implementation);
  if (fake.fail_enqueue_after == 0) return refuse(fake.enqueue_error);
  if (fake.fail_enqueue_after > 0) --fake.fail_enqueue_after;
  if (!check_step(context)) return false;
  std::string event = "enqueue profile " + std::to_string(context.profile) + " tokens " +
                      std::to_string(context.shapes.at("input_ids").extents[1]);
  // NVIDIA's Python bindings come without the fake driver, and their addresses lead nowhere.
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const auto submit =
      driver == nullptr
          ? nullptr
          : reinterpret_cast<bool (*)(void*, const std::function<void()>*)>(dlsym(driver, "fake_cuda_submit"));
  if (submit != nullptr) {
    const std::function<void()> work = [launch = Launch(context)] { launch.run(); };
    if (submit(stream, &work)) event += " captured";
  }
  record(event);
  return true;
}

// --- Functions at their positions
// -------------------------------------------------------------------------------------

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
  Runtime::set(interface->set_gpu_allocator, +[](void*, void* allocator) { fake.allocator = allocator; });
  Runtime::set(
      interface->set_engine_host_code_allowed, +[](void* implementation, bool allowed) {
        Runtime::of(implementation).host_code_allowed = allowed;
        record(std::string("host code ") + (allowed ? "allowed" : "refused"));
      });
  HostMemory::set(2, +[](void* implementation) -> void* { return HostMemory::of(implementation).bytes.data(); });
  HostMemory::set(3, +[](void* implementation) { return HostMemory::of(implementation).bytes.size(); });
  HostMemory::set(4, +[](void*) -> int32_t { return 5; });  // DataType::kUINT8, which the bindings ask for
}

void place_engine_functions() {
  Engine::set(
      interface->create_execution_context, +[](void* implementation, int32_t strategy) {
        record("context");
        return create_context(Engine::of(implementation), strategy == sala::tensorrt::kUserManaged);
      });
  Engine::set(
      interface->create_execution_context_with_runtime_config, +[](void* implementation, void* object) {
        const Config& config = *static_cast<Config*>(object);
        record("context specialization " + std::to_string(config.specialization) + " cached " +
               std::to_string(config.cache != nullptr));
        if (config.cache != nullptr) ++config.cache->compiled;
        return create_context(Engine::of(implementation), config.strategy == sala::tensorrt::kUserManaged);
      });
  Engine::set(interface->create_runtime_config, +[](void*) -> void* { return new Config(); });
  Engine::set(interface->get_nb_optimization_profiles, +[](void*) -> int32_t { return 2; });
  Engine::set(
      interface->get_tensor_shape,
      +[](void* implementation, const char* name) { return Engine::of(implementation).tensor(name).dims; });
  Engine::set(
      interface->get_tensor_data_type,
      +[](void* implementation, const char* name) { return Engine::of(implementation).tensor(name).dtype; });
  Engine::set(
      interface->get_tensor_io_mode,
      +[](void* implementation, const char* name) { return Engine::of(implementation).tensor(name).mode; });
  Engine::set(
      interface->get_profile_shape, +[](void* implementation, const char* name, int32_t profile, int32_t) {
        return Engine::of(implementation).tensor(name).largest[profile];
      });
  Engine::set(
      interface->get_nb_io_tensors,
      +[](void* implementation) { return static_cast<int32_t>(Engine::of(implementation).tensors.size()); });
  Engine::set(
      interface->get_io_tensor_name, +[](void* implementation, int32_t index) {
        return Engine::of(implementation).tensors[static_cast<size_t>(index)].name.c_str();
      });
  Engine::set(
      interface->get_device_memory_size_for_profile,
      +[](void* implementation, int32_t profile) { return Engine::of(implementation).activation_bytes[profile]; });
}

void place_context_functions() {
  Context::set(
      interface->set_optimization_profile_async, +[](void* implementation, int32_t profile, void*) {
        Context::of(implementation).profile = profile;
        record("profile " + std::to_string(profile));
        return true;
      });
  Context::set(interface->set_input_shape, &set_input_shape);
  Context::set(
      interface->set_tensor_address, +[](void* implementation, const char* name, void* data) {
        Context& context = Context::of(implementation);
        context.addresses[context.engine->tensor(name).name] = data;
        return true;
      });
  Context::set(interface->enqueue, &enqueue);
  Context::set(
      interface->set_device_memory, +[](void* implementation, void* memory, int64_t bytes) {
        Context::of(implementation).memory = static_cast<char*>(memory);
        Context::of(implementation).memory_bytes = bytes;
        record("device memory " + std::to_string(bytes));
      });
  Context::set(
      interface->is_stream_capturable, +[](void*, void*) {
        record("is stream capturable");
        return fake.capturable;
      });
}

void place_cache_functions() {
  Config::set(
      interface->set_execution_context_allocation_strategy,
      +[](void* implementation, int32_t strategy) { Config::of(implementation).strategy = strategy; });
  Config::set(interface->create_runtime_cache, +[](void*) -> void* { return new Cache(); });
  Config::set(
      interface->set_runtime_cache, +[](void* implementation, void* cache) {
        Config::of(implementation).cache = static_cast<Cache*>(cache);
        record("runtime cache");
        return true;
      });
  Config::set(
      interface->set_dynamic_shapes_kernel_specialization_strategy, +[](void* implementation, int32_t strategy) {
        Config::of(implementation).specialization = strategy;
        record("specialization " + std::to_string(strategy));
      });
  Cache::set(
      interface->cache_serialize, +[](void* implementation) -> void* {
        auto* memory = new HostMemory();
        memory->bytes = "compiled " + std::to_string(Cache::of(implementation).compiled);
        return memory;
      });
  Cache::set(
      interface->cache_deserialize, +[](void* implementation, const void* data, size_t bytes) {
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
