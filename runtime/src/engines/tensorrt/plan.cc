#include "engines/tensorrt/plan.h"

#include <elf.h>

#include <cstring>
#include <string>

#include "base/file.h"
#include "base/sha256.h"

namespace sala::tensorrt {

namespace {

constexpr std::string_view kCopyAgain = ": it was changed or damaged, copy the bundle again";

/// TensorRT stores a library as it was, so its own hash can be checked.
Status check_host_code(const std::string& where, std::string_view plan, const Manifest& manifest) {
  bool found = false;
  int64_t from = 0;
  while (const auto library = find_embedded_library(plan, from)) {
    const auto bytes = plan.substr(static_cast<size_t>(library->offset), static_cast<size_t>(library->bytes));
    if (sha256(bytes) != manifest.engine.plugin_library_sha256) {
      return error(ErrorCode::kBundleDamaged, where, " holds a library of ", library->bytes, " bytes at byte ",
                   library->offset, " that is not the plugin library of ", kManifestFile,
                   ": do not trust this bundle, build it again");
    }
    found = true;
    from = library->offset + library->bytes;
  }
  if (found) return success();
  return error(ErrorCode::kBundleDamaged, where, " lacks the plugin library that ", kManifestFile, " says it holds",
               kCopyAgain);
}

}  // namespace

std::optional<EmbeddedLibrary> find_embedded_library(std::string_view data, int64_t from) {
  for (size_t at = data.find(ELFMAG, static_cast<size_t>(from)); at != std::string_view::npos;
       at = data.find(ELFMAG, at + 1)) {
    Elf64_Ehdr header;
    if (data.size() - at < sizeof header) return std::nullopt;
    std::memcpy(&header, data.data() + at, sizeof header);
    if (header.e_type != ET_DYN || header.e_machine != EM_X86_64) continue;  // cubins are ELF files too
    // Linkers put the section headers last.
    const uint64_t bytes = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
    if (header.e_shoff > data.size() || bytes > data.size() - at) continue;
    return EmbeddedLibrary{static_cast<int64_t>(at), static_cast<int64_t>(bytes)};
  }
  return std::nullopt;
}

Expected<Buffer> read_plan(const Bundle& bundle) {
  const std::string& name = bundle.manifest.engine.plan;
  const File& file = bundle.file(name);
  auto buffer = host_memory().allocate(file.bytes());
  if (!buffer) return buffer.error();
  SALA_RETURN_IF_ERROR(file.read(0, buffer->data(), file.bytes()));
  // What is hashed is what TensorRT gets: these bytes, not the file.
  const std::string_view bytes(static_cast<const char*>(buffer->data()), static_cast<size_t>(file.bytes()));
  if (sha256(bytes) != bundle.manifest.file(name)->sha256) {
    return error(ErrorCode::kBundleDamaged, file.path().string(), " has another SHA-256 than ", kManifestFile, " says",
                 kCopyAgain);
  }
  SALA_RETURN_IF_ERROR(check_host_code(file.path().string(), bytes, bundle.manifest));
  return buffer;
}

}  // namespace sala::tensorrt
