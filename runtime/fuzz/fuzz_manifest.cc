// Any text as bundle.json: read or refused as damaged or of another schema, in one line.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "bundle/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto manifest = sala::parse_manifest(text, "bundle.json");
  if (!manifest) {
    const sala::Error& error = manifest.error();
    const bool expected = error.code == sala::ErrorCode::kBundleDamaged || error.code == sala::ErrorCode::kBundleSchema;
    if (!expected || error.message.empty()) std::abort();
    return 0;
  }
  // What a runtime then relies on.
  if (manifest->has_engine() == manifest->engine.compute_capabilities.empty()) std::abort();
  if (manifest->config.inv_freq.empty()) std::abort();
  for (const auto& name : manifest->needed_files) {
    if (manifest->file(name) == nullptr) std::abort();
  }
  for (const auto& file : manifest->files) {
    if (file.path.empty() || file.path.front() == '/' || file.bytes < 0) std::abort();
  }
  for (const auto* inputs : {&manifest->cpu.weights, &manifest->engine.weights}) {
    for (const auto& input : *inputs) {
      for (const auto& part : input.parts) {
        for (const auto& tensor : part.tensors()) {
          if (!manifest->tensors.contains(tensor)) std::abort();
        }
      }
    }
  }
  return 0;
}
