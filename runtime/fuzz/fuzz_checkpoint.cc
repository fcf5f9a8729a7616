// Any file as the weights of a checkpoint that take the place of a bundle's: refused as unsuitable, or every tensor can
// be read and makes the input that it is for.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "weights/weight_input.h"
#include "weights/weight_source.h"

namespace {

using namespace sala;

StoredTensor stored(DType dtype, Shape shape) { return {"", 0, 0, dtype, std::move(shape), "", false}; }

/// Of a bundle with a plain weight, and a quantised one whose codes are part of its engine.
Manifest expected() {
  Manifest manifest;
  manifest.model_config = {{"rope_theta", 1e4}};
  manifest.tensors = {{"a", stored(DType::kBFloat16, {2, 2})},
                      {"b", stored(DType::kFloat32, {1})},
                      {"c", stored(DType::kInt8, {4, 2})}};
  manifest.tensors.at("c").bytes = 8;
  manifest.tensors.at("c").sha256 = sha256(std::string("mnopqrst"));
  manifest.tensors.at("c").fixed = true;
  const TensorSpec plain{"a", DType::kFloat32, {{2, {}}, {2, {}}}}, codes{"c", DType::kInt8, {{4, {}}, {2, {}}}};
  const TensorSpec scales{"b", DType::kFloat32, {{4, {}}}};
  manifest.cpu.weights = {
      {plain, {{.tensor = "a"}}}, {codes, {{.tensor = "c"}}}, {scales, {{.tensor = "b", .rows = 4}}}};
  return manifest;
}

void check_taken(const Manifest& manifest, const WeightSource& source) {
  for (const WeightInput& input : manifest.cpu.weights) {
    const auto bytes = check_input(input, source);
    if (!bytes) std::abort();
    std::vector<float> numbers((static_cast<size_t>(*bytes) + sizeof(float) - 1) / sizeof(float));
    const auto read = InputReader(input, source).next(numbers.data(), *bytes);
    if (!read || *read != *bytes) std::abort();
  }
  if (!source.fingerprint()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Manifest manifest = expected();
  static const std::filesystem::path directory = "/dev/shm/sala-fuzz-checkpoint-" + std::to_string(getpid());
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << R"({"model_type": "minicpm_sala"})";
  std::ofstream(directory / "model.safetensors", std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  const auto source = WeightSource::of_checkpoint(directory, manifest);
  if (source) {
    check_taken(manifest, **source);
  } else if (source.error().code != ErrorCode::kWeightsUnsuitable || source.error().message.empty()) {
    std::abort();
  }
  std::filesystem::remove_all(directory);
  return 0;
}
