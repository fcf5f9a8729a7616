#include "base/step_interface.h"

#include <algorithm>
#include <map>
#include <string_view>

#include "sala/step_names.h"

namespace sala {

using namespace step_names;

namespace {

int64_t windows(int64_t tokens, int64_t size, int64_t stride) {
  return tokens < size ? 0 : (tokens - size) / stride + 1;
}

using ByName = std::map<std::string_view, const TensorSpec*>;

Expected<ByName> by_name(std::span<const TensorSpec> specs) {
  ByName result;
  for (const TensorSpec& spec : specs) {
    if (result.emplace(spec.name, &spec).second) continue;
    return error(ErrorCode::kInvalidArgument, "the step has two tensors ", spec.name);
  }
  return result;
}

Extent symbol(std::string_view name) { return {0, std::string(name)}; }

TensorSpec spec(std::string_view name, DType dtype, std::vector<Extent> shape) {
  return {std::string(name), dtype, std::move(shape)};
}

Status require(const ByName& specs, const TensorSpec& expected) {
  const auto at = specs.find(expected.name);
  if (at == specs.end()) return error(ErrorCode::kInvalidArgument, "the step has no tensor ", expected.name);
  const TensorSpec& found = *at->second;
  if (found.dtype != expected.dtype || found.shape != expected.shape) {
    return error(ErrorCode::kInvalidArgument, "tensor ", expected.name,
                 " has another type or shape than in a step of this model");
  }
  return success();
}

Expected<CacheSpec> cache_of(const TensorSpec& past, const ByName& outputs) {
  CacheSpec cache{past, std::string(kPresent) + past.name.substr(kPast.size()), CacheRows::kAll, 0};
  SALA_RETURN_IF_ERROR(require(outputs, {cache.present_name, past.dtype, past.shape}));
  for (size_t axis = 0; axis < past.shape.size(); ++axis) {
    const std::string& name = past.shape[axis].symbol;
    if (name.empty() || name == kBatch) continue;
    if (name != kCapacity && name != kCapacityK1 && name != kCapacityK2) {
      return error(ErrorCode::kInvalidArgument, "cache ", past.name, " has the unknown dimension ", name);
    }
    if (cache.rows != CacheRows::kAll) {
      return error(ErrorCode::kInvalidArgument, "cache ", past.name, " grows along two dimensions");
    }
    cache.rows = name == kCapacity     ? CacheRows::kTokens
                 : name == kCapacityK1 ? CacheRows::kK1Windows
                                       : CacheRows::kK2Windows;
    cache.row_axis = axis;
  }
  return cache;
}

}  // namespace

int64_t CacheSpec::valid_rows(const ModelConfig& config, int64_t tokens) const {
  switch (rows) {
    case CacheRows::kK1Windows:
      return windows(tokens, config.kernel_size, config.kernel_stride);
    case CacheRows::kK2Windows:
      return windows(tokens, 4 * config.kernel_size, 4 * config.kernel_stride);
    case CacheRows::kTokens:
    case CacheRows::kAll:
      break;
  }
  return tokens;
}

std::vector<ByteRange> CacheSpec::Rows::parts() const {
  std::vector<ByteRange> parts;
  for (int64_t piece = 0; piece < pieces && bytes > 0; ++piece) parts.push_back({offset + piece * stride_bytes, bytes});
  return parts;
}

CacheSpec::Rows CacheSpec::written(const ModelConfig& config, const Shape& shape, int64_t from, int64_t to) const {
  Rows found;
  if (rows == CacheRows::kAll) {
    found.bytes = found.stride_bytes = bytes_of(past.dtype, elements_of(shape));
    return found;
  }
  int64_t row_bytes = bytes_of(past.dtype, 1);
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis < row_axis) found.pieces *= shape[axis];
    if (axis > row_axis) row_bytes *= shape[axis];
  }
  const int64_t first = valid_rows(config, from);
  found.bytes = (valid_rows(config, to) - first) * row_bytes;
  found.offset = first * row_bytes;
  found.stride_bytes = shape[row_axis] * row_bytes;
  return found;
}

Expected<StepInterface> StepInterface::create(const ModelConfig& config, std::span<const TensorSpec> inputs,
                                              std::span<const TensorSpec> outputs) {
  const auto into = by_name(inputs), out = by_name(outputs);
  if (!into) return into.error();
  if (!out) return out.error();
  const Extent batch = symbol(kBatch), tokens = symbol(kTokens);
  const Extent rope_width{2 * static_cast<int64_t>(config.inv_freq.size()), {}};
  SALA_RETURN_IF_ERROR(require(*into, spec(kInputIds, DType::kInt64, {batch, tokens})));
  SALA_RETURN_IF_ERROR(require(*into, spec(kPastLength, DType::kInt32, {batch})));
  SALA_RETURN_IF_ERROR(require(*into, spec(kContextLength, DType::kInt32, {batch})));
  SALA_RETURN_IF_ERROR(require(*into, spec(kRopeCosSin, DType::kFloat32, {batch, tokens, rope_width})));
  SALA_RETURN_IF_ERROR(require(*into, spec(kLogitRows, DType::kInt32, {symbol(kRows)})));
  SALA_RETURN_IF_ERROR(require(*out, spec(kLogits, DType::kFloat32, {symbol(kRows), {config.vocab_size, {}}})));
  StepInterface step;
  for (const TensorSpec& input : inputs) {
    if (!input.name.starts_with(kPast)) continue;
    auto cache = cache_of(input, *out);
    if (!cache) return cache.error();
    step.caches.push_back(*std::move(cache));
  }
  if (inputs.size() != step.caches.size() + 5 || outputs.size() != step.caches.size() + 1) {
    return error(ErrorCode::kInvalidArgument, "the step has ", inputs.size(), " inputs and ", outputs.size(),
                 " outputs, of which ", step.caches.size(), " are caches: some tensor is not part of a step");
  }
  return step;
}

SymbolSizes cache_sizes(const ModelConfig& config, int64_t capacity) {
  // Compressed caches hold at least one key, for a tensor may not be empty.
  const int64_t k1 = windows(capacity, config.kernel_size, config.kernel_stride);
  const int64_t k2 = windows(capacity, 4 * config.kernel_size, 4 * config.kernel_stride);
  SymbolSizes sizes;
  sizes.emplace(kBatch, 1);
  sizes.emplace(kCapacity, capacity);
  sizes.emplace(kCapacityK1, std::max<int64_t>(1, k1));
  sizes.emplace(kCapacityK2, std::max<int64_t>(1, k2));
  return sizes;
}

}  // namespace sala
