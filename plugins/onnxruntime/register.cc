// The exported symbols of libsala_ort.so.

#include <atomic>
#include <iterator>
#include <mutex>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "onnxruntime/custom_op.h"
#include "onnxruntime/linear_op.h"

#define SALA_EXPORT extern "C" __attribute__((visibility("default")))

namespace sala::ort {
namespace {

std::atomic<cpu::SimdLevel>& current_level() {
  static std::atomic<cpu::SimdLevel> level{cpu::best_simd_level()};
  return level;
}

/// Adds the tables of one operator, one for each type of its caches. They live as long as the library.
template <size_t kIndex, DataType... kTypes>
void append_tables(std::vector<const OrtCustomOp*>& tables) {
  static const std::tuple<CustomOp<kIndex, kTypes>...> ops;
  (tables.push_back(&std::get<CustomOp<kIndex, kTypes>>(ops)), ...);
}

/// The tables of callbacks of all operators.
template <size_t... kIndices>
std::vector<const OrtCustomOp*> custom_ops(std::index_sequence<kIndices...>) {
  std::vector<const OrtCustomOp*> tables;
  const auto append = [&]<size_t kIndex>() {
    if constexpr (has_caches(cpu::kOperators[kIndex].contract)) {
      append_tables<kIndex, DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16>(tables);
    } else {
      append_tables<kIndex, DataType::kFloat32>(tables);
    }
  };
  (append.template operator()<kIndices>(), ...);
  tables.push_back(&linear_op());
  return tables;
}

/// The domain with all operators, made once. It is never released: sessions of any lifetime refer to it.
OrtStatus* shared_domain(const OrtApi& api, OrtCustomOpDomain*& domain) {
  static std::mutex mutex;
  static OrtCustomOpDomain* shared = nullptr;
  const std::lock_guard lock(mutex);
  if (shared == nullptr) {
    OrtCustomOpDomain* fresh = nullptr;
    if (OrtStatus* status = api.CreateCustomOpDomain("sala", &fresh)) return status;
    for (const OrtCustomOp* op : custom_ops(std::make_index_sequence<std::size(cpu::kOperators)>())) {
      if (OrtStatus* status = api.CustomOpDomain_Add(fresh, op)) {
        api.ReleaseCustomOpDomain(fresh);
        return status;
      }
    }
    shared = fresh;
  }
  domain = shared;
  return nullptr;
}

}  // namespace

cpu::SimdLevel simd_level() { return current_level().load(std::memory_order_relaxed); }

}  // namespace sala::ort

/// Entry point that ONNX Runtime looks for (`SessionOptions.register_custom_ops_library`).
SALA_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const sala::OrtApiBase* base) noexcept {
  const sala::OrtApi* api = base->GetApi(sala::kOrtApiVersion);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(sala::ORT_FAIL, "libsala_ort.so needs ONNX Runtime 1.21 or later");
  }
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = sala::ort::shared_domain(*api, domain)) return status;
  return api->AddCustomOpDomain(options, domain);
}

/// For tests: makes all kernels of the process use the instructions of a level, by its name in cpu/simd_level.h.
/// Returns 0, or -1 if this machine does not run them. Not to be called while a session runs.
SALA_EXPORT int sala_ort_set_simd_level(const char* name) noexcept {
  for (const sala::cpu::SimdLevel level : sala::cpu::kSimdLevels) {
    if (std::string_view(name) == sala::cpu::name_of(level) && sala::cpu::runs(level)) {
      sala::ort::current_level().store(level);
      return 0;
    }
  }
  return -1;
}

/// Name of the instructions in use.
SALA_EXPORT const char* sala_ort_simd_level() noexcept { return sala::cpu::name_of(sala::ort::simd_level()); }
