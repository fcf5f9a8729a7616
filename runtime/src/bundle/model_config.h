// The model of a bundle, `model` in bundle.json.

#pragma once

#include "base/json_fields.h"
#include "sala/model.h"

namespace sala {

/// Reads and checks `model` of bundle.json. What is wrong becomes a problem of the field.
ModelConfig config_of(const Field& model);

}  // namespace sala
