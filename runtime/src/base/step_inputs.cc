#include <algorithm>

#include "sala/engine.h"
#include "sala/step_names.h"

namespace sala {

std::array<Tensor, 5> StepInputs::tensors() const {
  const int64_t rows = batch(), columns = tokens();
  const int64_t rope_width = static_cast<int64_t>(rope_cos_sin.size()) / std::max<int64_t>(1, rows * columns);
  // Engines only read them, but their libraries take no pointers to constants.
  const auto data = [](const auto* values) { return const_cast<void*>(static_cast<const void*>(values)); };
  return {
      Tensor{step_names::kInputIds, DType::kInt64, {rows, columns}, data(input_ids.data())},
      Tensor{step_names::kPastLength, DType::kInt32, {rows}, data(past_length.data())},
      Tensor{step_names::kContextLength, DType::kInt32, {rows}, data(context_length.data())},
      Tensor{step_names::kRopeCosSin, DType::kFloat32, {rows, columns, rope_width}, data(rope_cos_sin.data())},
      Tensor{
          step_names::kLogitRows, DType::kInt32, {static_cast<int64_t>(logit_rows.size())}, data(logit_rows.data())}};
}

}  // namespace sala
