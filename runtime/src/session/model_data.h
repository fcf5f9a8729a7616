// What a model and its sessions share.

#pragma once

#include <memory>
#include <string>

#include "base/step_interface.h"
#include "sala/engine.h"
#include "sala/model.h"

namespace sala {

struct ModelData {
  ModelConfig config;
  std::shared_ptr<const Engine> engine;
  StepInterface step;
  std::string runtime_reason;            // Model::runtime_reason
  std::unique_ptr<Memory> token_memory;  // the host's, for the tokens of sessions
};

}  // namespace sala
