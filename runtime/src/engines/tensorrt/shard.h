// One plan, deserialised and compared with bundle.json.

#pragma once

#include <string>
#include <vector>

#include "engines/tensorrt/interface.h"
#include "engines/tensorrt/log.h"
#include "manifest.h"
#include "sala/engine.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// Profiles in the order in which sala-export builds them.
constexpr int32_t kProfileIndex[] = {0, 1};  // by Profile: prefill, decode

struct Shard {
  std::string plan;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  int64_t activation_bytes = 0;  // of the larger profile
  Object engine;                 // ICudaEngine
};

/// Takes an engine that TensorRT made of a plan. kBundleDamaged if its tensors, types, shapes or profiles are not those
/// of bundle.json: everything that is bound later follows from there.
Expected<Shard> adopt_engine(const Interface& interface, Object engine, const Manifest& manifest,
                             const ShardEntry& entry);

}  // namespace sala::tensorrt
