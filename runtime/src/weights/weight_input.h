// The bytes of a graph's weight inputs, made from the tensors of a checkpoint.

#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "bundle/manifest.h"
#include "sala/status.h"
#include "weights/weight_source.h"

namespace sala {

/// Bytes of an input as its `spec` says. kBundleDamaged if its parts cannot be what they say, or do not fill its shape
/// exactly.
Expected<int64_t> check_input(const WeightInput& input, const WeightSource& source);

/// Checks all of them, before any is loaded; their bytes together.
Expected<int64_t> check_inputs(std::span<const WeightInput> inputs, const WeightSource& source);

/// The tensor whose bytes are those of the input; null if there is none, and the input has to be made.
const StoredTensor* tensor_as_it_is(const WeightInput& input, const WeightSource& source);

/// Makes the bytes of an input, which `check_input` has taken, from its first to its last. Hashes the tensors that it
/// reads, and keeps little more than a megabyte and the scales of a part, or of an input of word columns, in memory.
class InputReader {
 public:
  /// Both outlive it.
  InputReader(const WeightInput& input, const WeightSource& source);
  InputReader(InputReader&&) noexcept;
  ~InputReader();

  /// Writes the next bytes to `to`, which is aligned as a float, and returns how many: at most `room`, which is at
  /// least 16 or all that is left; 0 after the last. A few megabytes at a time are best: the hash finds them in the
  /// processor's cache.
  /// kBundleDamaged or kWeightsUnsuitable, naming the tensor, if it cannot be read or is not what it must be.
  Expected<int64_t> next(void* to, int64_t room);

  class Part;

 private:
  Expected<int64_t> next_number(char* to);

  const WeightInput* input_;
  const WeightSource* source_;
  size_t next_part_ = 0;
  std::unique_ptr<Part> part_;
};

}  // namespace sala
