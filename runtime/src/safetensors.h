// The safetensors container: header length (8 bytes, little endian), header (JSON), tensor data without gaps.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "file.h"
#include "sala/status.h"
#include "sala/tensor.h"

namespace sala {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  Shape shape;
  int64_t offset = 0;  // bytes from the start of the file
  int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<StoredTensor> tensors;  // in the order of their data
};

/// Header length and header for tensors that follow each other in this order; their offsets are set.
std::string write_safetensors_header(SafetensorsHeader& header);

/// Reads and checks a header. kStateForeign if the file is of another kind, kStateDamaged if it is truncated or its
/// entries contradict each other.
Expected<SafetensorsHeader> read_safetensors_header(const File& file);

}  // namespace sala
