// A bundle whose files were opened once: what was checked is what is read, whatever takes their names meanwhile.

#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "base/file.h"
#include "bundle/manifest.h"
#include "sala/status.h"

namespace sala {

struct Bundle {
  std::filesystem::path path;  // for messages
  Manifest manifest;
  OpenedFiles files;  // by their paths in the manifest: its files, and those of the weights if it includes them

  /// Reads and checks bundle.json, opens every file and compares the sizes. With a `descriptor` of a directory, of that
  /// one: then `path` is for messages alone. kBundleMissing if there is none, kBundleDamaged or kBundleSchema naming
  /// the field or the file. kBundleDamaged too if `manifest_sha256` is given and not that of bundle.json.
  static Expected<Bundle> open(const std::filesystem::path& path, int descriptor = -1,
                               std::string_view manifest_sha256 = "");

  /// Hashes every file but those of the weights, whose tensors are hashed when they are loaded.
  Status verify_hashes() const;

  /// The open file of a path that `manifest` lists.
  const File& file(const std::string& name) const { return *files.at(name); }
};

}  // namespace sala
