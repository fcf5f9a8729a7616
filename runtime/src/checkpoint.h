// The directory of a checkpoint in Hugging Face layout, whose weights take the place of a bundle's.

#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "manifest.h"
#include "sala/status.h"

namespace sala {

/// Where the checkpoint has each of `manifest.tensors`, by name. `sha256` is set where the bytes are `fixed`.
///
/// kWeightsMissing if `directory` is no checkpoint. kWeightsUnsuitable, naming the field, tensor or file, if its
/// configuration or a tensor's type or shape is not what the bundle was built for, or a file is damaged.
Expected<std::map<std::string, StoredTensor, std::less<>>> find_tensors(const std::filesystem::path& directory,
                                                                        const Manifest& manifest);

}  // namespace sala
