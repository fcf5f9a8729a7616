// The runtimes of this library by name, and the choice between them.

#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "bundle/bundle.h"
#include "sala/engine.h"
#include "sala/model.h"
#include "weights/weight_source.h"

namespace sala {

/// kInvalidArgument if `name` is neither `auto` nor the name of a runtime.
Status check_runtime(std::string_view name);

/// The engine of `options.runtime`. With `auto` that is the first runtime of the table in runtimes.cc that this machine
/// has the hardware and the libraries for, and `reason` takes why those before it were passed over.
Expected<std::shared_ptr<const Engine>> create_engine(const Bundle& bundle, const LoadOptions& options,
                                                      const WeightSource& source, std::string& reason);

}  // namespace sala
