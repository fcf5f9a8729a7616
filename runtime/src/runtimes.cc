#include "runtimes.h"

#include <iterator>

#include "engines/onnxruntime/engine.h"
#include "engines/tensorrt/engine.h"

namespace sala {

namespace {

constexpr std::string_view kAuto = "auto";

struct Runtime {
  std::string_view name;
  Expected<std::shared_ptr<const Engine>> (*create)(const Bundle& bundle, const LoadOptions& options,
                                                    const WeightSource& source);
};

/// In the order in which `auto` tries them.
constexpr Runtime kRuntimes[] = {
    {"tensorrt", &tensorrt::TensorRtEngine::create},
    {"onnxruntime", &OnnxRuntimeEngine::create},
};

/// Whether an engine could not be made because this machine lacks what it is for, and not because something is broken.
bool is_for_elsewhere(const Error& error) {
  return error.code == ErrorCode::kDeviceMissing || error.code == ErrorCode::kDeviceUnsuitable ||
         error.code == ErrorCode::kLibraryMissing || error.code == ErrorCode::kLibraryUnusable;
}

}  // namespace

Status check_runtime(std::string_view name) {
  std::string known(kAuto);
  if (name == kAuto) return success();
  for (const Runtime& each : kRuntimes) {
    if (name == each.name) return success();
    known.append(&each == std::end(kRuntimes) - 1 ? " or " : ", ").append(each.name);
  }
  return error(ErrorCode::kInvalidArgument, "runtime '", name, "' is unknown: choose ", known);
}

Expected<std::shared_ptr<const Engine>> create_engine(const Bundle& bundle, const LoadOptions& options,
                                                      const WeightSource& source, std::string& reason) {
  const Runtime& last = *(std::end(kRuntimes) - 1);
  for (const Runtime& each : kRuntimes) {
    if (options.runtime != kAuto && options.runtime != each.name) continue;
    auto engine = each.create(bundle, options, source);
    const bool is_choice = options.runtime == each.name || &each == &last;
    if (engine || is_choice || !is_for_elsewhere(engine.error())) return engine;
    reason = engine.error().message;
  }
  return check_runtime(options.runtime).error();
}

}  // namespace sala
