// The objects of the fake TensorRT, with tables of functions as the real ones have.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engines/tensorrt/interface.h"
#include "fake_tensorrt.h"

namespace sala::test {

using tensorrt::Dims;
using tensorrt::kInputTensor;
using tensorrt::kOutputTensor;

constexpr int kPositions = 80;
using Table = std::array<void*, kPositions>;

inline FakeTensorRt fake;
inline const tensorrt::Interface* interface = nullptr;
inline void* logger = nullptr;

inline void record(const std::string& event) { fake.events.push_back(event); }

inline void log_error(const std::string& message) {
  const int position = interface->versioned_logger ? 4 : 0;
  reinterpret_cast<void (*)(void*, int32_t, const char*)>((*static_cast<void***>(logger))[position])(logger, 1,
                                                                                                     message.c_str());
}

inline bool refuse(const std::string& message) {
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
  /// Places a function where `at` says, if the version has it; its first argument is the implementation.
  template <class Result, class... Arguments>
  static void set(const tensorrt::Function<Result(Arguments...)>& at,
                  std::type_identity_t<Result (*)(void*, Arguments...)> function) {
    if (at) table()[static_cast<size_t>(at.position())] = reinterpret_cast<void*>(function);
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
      case 3:  // INT32
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

inline bool is_weight(const Tensor& tensor) { return tensor.mode == kInputTensor && !tensor.is_dynamic(); }

}  // namespace sala::test
