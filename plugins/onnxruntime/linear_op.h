// The operator `Linear` of ONNX Runtime: products with weights as a checkpoint stores them.
//
// Its inputs depend on how weights are stored, so that it has no contract of sala_export/ops. Inputs: `x` float32
// [..., K], then for each weight its numbers [rows, K], or its codes and its scales. Output: `y` float32 [..., N].
// Attributes: `weights`, how the weights are stored; `math`, "exact" or "fast"; `epilogue`, "none" or "silu_mul"; and
// `global_scale`. linear/linear_cpu.h says what is computed.

#pragma once

#include "engines/onnxruntime/interface.h"

namespace sala::ort {

/// The table of callbacks, which lives as long as the library.
const OrtCustomOp& linear_op();

}  // namespace sala::ort
