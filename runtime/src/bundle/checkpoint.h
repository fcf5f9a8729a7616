// The directory of a checkpoint in Hugging Face layout, whose weights take the place of a bundle's.

#pragma once

#include <filesystem>

#include "base/file.h"
#include "bundle/manifest.h"
#include "sala/status.h"

namespace sala {

/// What a checkpoint has of `manifest.tensors`.
struct CheckpointContents {
  StoredTensors tensors;  // `sha256` is what the bytes of a fixed one must have
  OpenedFiles files;      // those of the tensors, by StoredTensor::file
};

/// kWeightsMissing if `path` is no checkpoint. kWeightsUnsuitable, naming the field, tensor or file, if its
/// configuration or a tensor's type or shape is not what the bundle was built for, or a file is damaged.
Expected<CheckpointContents> open_checkpoint(const std::filesystem::path& path, const Manifest& manifest);

}  // namespace sala
