#include <algorithm>

#include "sala/engine.h"
#include "sala/step_names.h"

namespace sala {

std::array<Tensor, 4> StepInputs::tensors() const {
  const int64_t tokens = static_cast<int64_t>(input_ids.size());
  const int64_t rope_width = static_cast<int64_t>(rope_cos_sin.size()) / std::max<int64_t>(1, tokens);
  // Engines only read them, but their libraries take no pointers to constants.
  const auto data = [](const auto* values) { return const_cast<void*>(static_cast<const void*>(values)); };
  return {Tensor{step_names::kInputIds, DType::kInt64, {1, tokens}, data(input_ids.data())},
          Tensor{step_names::kPastLength, DType::kInt32, {1}, data(&past_length)},
          Tensor{step_names::kContextLength, DType::kInt32, {1}, data(&context_length)},
          Tensor{step_names::kRopeCosSin, DType::kFloat32, {1, tokens, rope_width}, data(rope_cos_sin.data())}};
}

}  // namespace sala
