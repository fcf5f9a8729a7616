#include "bundle/bundle.h"

#include <utility>

#include "base/sha256.h"

namespace sala {

namespace {

constexpr int64_t kManifestLimitBytes = int64_t{64} << 20;

Expected<Directory> open_directory(const std::filesystem::path& path, int descriptor) {
  constexpr std::string_view kAdvice = "a bundle is the directory that `sala-export build` writes";
  auto directory = descriptor < 0 ? Directory::open(path, ErrorCode::kBundleDamaged, kAdvice)
                                  : Directory::of(descriptor, path, ErrorCode::kBundleDamaged);
  if (directory) return directory;
  return error(ErrorCode::kBundleMissing, directory.error().message);
}

Expected<Manifest> read_manifest(const Directory& directory, std::string_view wanted_sha256) {
  const auto file = directory.open(kManifestFile);
  if (!file) {
    if (directory.has(kManifestFile)) return file.error();
    return error(ErrorCode::kBundleMissing, directory.path().string(), " has no ", kManifestFile,
                 ": it is not a bundle");
  }
  const auto text = read_file(*file, kManifestLimitBytes);
  if (!text) return text.error();
  if (!wanted_sha256.empty() && sha256(*text) != wanted_sha256) {
    return error(ErrorCode::kBundleDamaged, file->path().string(),
                 " was replaced while the bundle was loaded: load it again when nothing writes to it");
  }
  return parse_manifest(*text, file->path().string());
}

/// Opens a file of the bundle and compares its size.
Status add(const Directory& directory, const std::string& name, int64_t bytes, OpenedFiles& files) {
  auto file = directory.open(name, "copy the bundle again");
  if (!file) return file.error();
  if (file->bytes() != bytes) {
    return error(ErrorCode::kBundleDamaged, file->path().string(), " has ", file->bytes(), " bytes, ", kManifestFile,
                 " says ", bytes, ": copy the bundle again");
  }
  files[name] = std::make_shared<const File>(*std::move(file));
  return success();
}

}  // namespace

Expected<Bundle> Bundle::open(const std::filesystem::path& path, int descriptor, std::string_view manifest_sha256) {
  const auto directory = open_directory(path, descriptor);
  if (!directory) return directory.error();
  auto manifest = read_manifest(*directory, manifest_sha256);
  if (!manifest) return manifest.error();
  Bundle bundle{path, *std::move(manifest), {}};
  for (const FileEntry& entry : bundle.manifest.files) {
    SALA_RETURN_IF_ERROR(add(*directory, entry.path, entry.bytes, bundle.files));
  }
  if (!bundle.manifest.weights_included) return bundle;
  for (const auto& [name, bytes] : bundle.manifest.weight_files) {
    SALA_RETURN_IF_ERROR(add(*directory, name, bytes, bundle.files));
  }
  return bundle;
}

Status Bundle::verify_hashes() const {
  for (const FileEntry& entry : manifest.files) {
    const File& opened = file(entry.path);
    const auto digest = sha256(opened);
    if (!digest) return digest.error();
    if (*digest != entry.sha256) {
      return error(ErrorCode::kBundleDamaged, opened.path().string(), " has another SHA-256 than ", kManifestFile,
                   " says: it was changed or damaged, copy the bundle again");
    }
  }
  return success();
}

}  // namespace sala
