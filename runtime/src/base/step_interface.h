// The tensors of one step of a SALA model, recognised among an engine's inputs and outputs.
//
// The names are those of sala/step_names.h.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sala/model.h"
#include "sala/status.h"
#include "sala/tensor.h"

namespace sala {

/// How the rows of a cache follow from the tokens seen.
enum class CacheRows { kAll, kTokens, kK1Windows, kK2Windows };

struct CacheSpec {
  TensorSpec past;
  std::string present_name;
  CacheRows rows = CacheRows::kAll;
  size_t row_axis = 0;  // if rows is not kAll

  /// Rows that hold something after `tokens` tokens; only if rows is not kAll.
  int64_t valid_rows(const ModelConfig& config, int64_t tokens) const;
};

struct StepInterface {
  std::vector<CacheSpec> caches;  // in graph order

  /// kInvalidArgument naming the tensor that is missing or is not what a step has.
  static Expected<StepInterface> create(const ModelConfig& config, std::span<const TensorSpec> inputs,
                                        std::span<const TensorSpec> outputs);
};

/// Values of the symbolic dimensions of a session's caches.
SymbolSizes cache_sizes(const ModelConfig& config, int64_t capacity);

}  // namespace sala
