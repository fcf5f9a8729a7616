// What a model and its sessions share.

#pragma once

#include <memory>
#include <string>

#include "sala/engine.h"
#include "sala/model.h"
#include "session/step_interface.h"

namespace sala {

struct ModelData {
  ModelConfig config;
  std::shared_ptr<const Engine> engine;
  StepInterface step;
  std::string runtime_reason;  // Model::runtime_reason
};

}  // namespace sala
