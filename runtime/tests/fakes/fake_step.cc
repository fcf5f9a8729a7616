#include "fake_step.h"

#include <dlfcn.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fake_objects.h"
#include "mock_step.h"

namespace sala::test {

namespace {

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
    } else if (tensor.mode == kInputTensor && tensor.name != "logit_rows" &&
               context.shapes.at(tensor.name).extents[0] != context.shapes.at("input_ids").extents[0]) {
      return refuse(tensor.name + " has another batch than input_ids");
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
  MockRows rows(const std::string& name, int64_t sequence) const {
    const std::string past = "past_key_values." + name;
    const int64_t count = shapes.at(past).extents[2];
    return {at<float>(past) + sequence * kHeads * count * kWidth, count};
  }

  void run_sequence(int64_t sequence, int64_t mixed) const {
    const int64_t tokens = shapes.at("input_ids").extents[1];
    const int64_t past = at<int32_t>("past_length")[sequence];
    const int64_t* ids = at<int64_t>("input_ids") + sequence * tokens;
    const float* rope = at<float>("rope_cos_sin") + 2 * sequence * tokens;
    float* state = at<float>("past_key_values.0.state") + sequence * kHeads;
    const MockCaches caches{rows("1.key", sequence), rows("1.value", sequence), rows("1.k1", sequence),
                            rows("1.k2", sequence)};
    for (int64_t t = 0; t < tokens; ++t) {
      mock_state(state, ids[t], rope[2 * t + 1], at<int32_t>("context_length")[sequence]);
      mock_caches(caches, past + t, ids[t]);
      for (int64_t i = 0; i < shapes.at("logit_rows").extents[0]; ++i) {
        if (at<int32_t>("logit_rows")[i] != sequence * tokens + t) continue;
        mock_logits(state, caches, past + t + 1, mixed, at<float>("logits") + i * kVocabSize);
      }
    }
  }

  void run() const {
    int64_t mixed = 0;
    for (const auto& [data, bytes] : weights) mixed = mock_weight(mixed, data, bytes);
    for (int64_t i = 0; i < shapes.at("input_ids").extents[0]; ++i) run_sequence(i, mixed);
    // Activations are anybody's between steps.
    std::memset(memory, 0xa5, static_cast<size_t>(memory_bytes));
  }
};

}  // namespace

bool enqueue(void* implementation, void* stream) {
  const Context& context = Context::of(implementation);
  if (fake.fail_enqueue_after == 0) return refuse(fake.enqueue_error);
  if (fake.fail_enqueue_after > 0) --fake.fail_enqueue_after;
  if (!check_step(context)) return false;
  const Dims& ids = context.shapes.at("input_ids");
  std::string event = "enqueue profile " + std::to_string(context.profile) + " batch " +
                      std::to_string(ids.extents[0]) + " tokens " + std::to_string(ids.extents[1]);
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

}  // namespace sala::test
