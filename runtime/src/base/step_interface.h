// The tensors of one step of a SALA model, recognised among an engine's inputs and outputs.
//
// The names are those of sala/step_names.h.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sala/engine.h"
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

  /// Where rows stand in a cache of this shape, those that steps write between a context of `from` tokens and one of
  /// `to`, and all of a cache that has no rows.
  struct Rows {
    int64_t pieces = 1;
    int64_t bytes = 0;         // of the rows of one piece, which are side by side
    int64_t offset = 0;        // of the first piece in the cache
    int64_t stride_bytes = 0;  // between the starts of pieces

    /// One part for every piece, in order.
    std::vector<ByteRange> parts() const;
  };
  Rows written(const ModelConfig& config, const Shape& shape, int64_t from, int64_t to) const;
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
