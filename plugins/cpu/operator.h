// An operator on the CPU: its contract, and the function that serves a call which keeps it. `operators.h` lists them.

#pragma once

#include <cstdint>
#include <span>

#include "common/contract_table.h"
#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::cpu {

/// What an operator is called with, its shapes and rules checked.
struct Arguments {
  std::span<const int64_t> names;  // values of ContractTable::names
  std::span<const float> floats;   // float attributes
  DataType cache_dtype;            // of activations that are updated in place; all others are float32
  std::span<const void* const> inputs;
  std::span<void* const> outputs;

  template <class T>
  const T* input(size_t index) const {
    return static_cast<const T*>(inputs[index]);
  }
  template <class T>
  T* output(size_t index) const {
    return static_cast<T*>(outputs[index]);
  }
};

struct Operator {
  const ContractTable& contract;
  Status (*run)(const Arguments& arguments, const ParallelFor& parallel, SimdLevel level);
};

}  // namespace sala::cpu
