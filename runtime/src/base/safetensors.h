// The safetensors container: header length (8 bytes, little endian), header (JSON), tensor data without gaps.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "sala/status.h"
#include "sala/tensor.h"

namespace sala {

struct SafetensorsTensor {
  std::string name;
  std::optional<DType> dtype;  // none: of a type that no state and no weight has
  std::string type;            // in the spelling of safetensors, as it was read
  Shape shape;
  int64_t offset = 0;  // bytes from the start of the file
  int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsTensor> tensors;  // in the order of their data
  int64_t data_start = 0;                  // bytes from the start of the file
};

/// Header length and header for tensors that follow each other in this order; their offsets are set.
std::string write_safetensors_header(SafetensorsHeader& header);

/// What a file is read as: the codes of its errors, and what to do about them.
struct SafetensorsUse {
  ErrorCode foreign;
  const char* if_foreign;
  ErrorCode damaged;
  const char* if_damaged;
};

/// Reads and checks a header. `use.foreign` if the file is of another kind, `use.damaged` if it is truncated or its
/// entries contradict each other.
Expected<SafetensorsHeader> read_safetensors_header(const File& file, const SafetensorsUse& use);

}  // namespace sala
