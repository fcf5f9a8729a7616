// An engine written in Python behind the C++ session: chunking, sampling and state files exist once, here as elsewhere.
//
// What the Python object must have is `PythonEngine` of sala_export/runtime/python_engine.py. Its exceptions become
// statuses at this border (errors.h); none passes through the core.

#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "sala/model.h"

namespace sala::python {

/// A model on an engine written in Python. The GIL must be held; what the engine's description raises is raised here.
Model create_model(nanobind::object engine, std::string source, std::string fingerprint, int64_t vocab_size,
                   int64_t max_position_embeddings, std::vector<int32_t> eos_token_ids, std::vector<float> inv_freq,
                   int64_t kernel_size, int64_t kernel_stride, int64_t dense_len);

/// Memory that someone else owns, for DLPack: on the GPU of an ordinal, or on the host if that is None.
nanobind::object device_bytes(uintptr_t address, size_t bytes, const nanobind::object& device);

}  // namespace sala::python
