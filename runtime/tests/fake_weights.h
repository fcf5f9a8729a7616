// Tensors of a checkpoint, the weights that an engine makes of them, and what the fake TensorRT then computes with.
//
// What the bytes of a weight must be is worked out here from the tensors, without the runtime's own conversions.

#pragma once

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "mock_step.h"
#include "safetensors_files.h"
#include "sala/tensor.h"

namespace sala::test {

using Json = nlohmann::json;

/// A tensor of a checkpoint; `fixed` as in the manifest.
struct TestTensor {
  DType dtype;
  Shape shape;
  std::string bytes;
  bool fixed = false;
};

using TestTensors = std::map<std::string, TestTensor>;

/// A weight input; `bytes` makes what it must hold.
struct TestWeight {
  TensorSpec spec;
  Json parts;
  std::string (*bytes)(const TestTensors& tensors, const Json& parts);
  Json layout = nullptr;
};

template <class T>
std::vector<T> values_of_bytes(const std::string& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

/// Finite numbers of bf16, some of which fp16 must round.
inline std::string bf16_bytes(int64_t elements, uint32_t seed) {
  std::minstd_rand random(seed);
  std::vector<uint16_t> values;
  for (int64_t i = 0; i < elements; ++i) {
    const uint16_t exponent = static_cast<uint16_t>(105 + random() % 30);  // 2^-22 to 2^7
    values.push_back(static_cast<uint16_t>((random() & 0x807f) | (exponent << 7)));
  }
  return bytes_of_values(values);
}

inline std::string code_bytes(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) bytes += static_cast<char>(random() >> 8);
  return bytes;
}

inline std::string scale_bytes(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(random() % 1000 + 1) / 3000.0f);
  return bytes_of_values(values);
}

/// Tensors of every form that an engine takes; another seed is another training of the same model.
inline TestTensors test_tensors(uint32_t seed = 1) {
  const std::string one_scale = scale_bytes(1, seed + 8);
  return {
      {"embed.weight", {DType::kBFloat16, {kVocabSize, 4}, bf16_bytes(kVocabSize * 4, seed)}},
      {"l0.q.weight", {DType::kBFloat16, {2, 3}, bf16_bytes(6, seed + 1)}},
      {"l0.k.weight", {DType::kBFloat16, {3, 3}, bf16_bytes(9, seed + 2)}},
      {"l0.norm.weight", {DType::kBFloat16, {3}, bf16_bytes(3, seed + 3)}},
      {"l1.gate.weight", {DType::kFloat8E4M3FN, {4, 5}, code_bytes(20, seed + 4)}},
      {"l1.up.weight", {DType::kFloat8E4M3FN, {3, 5}, code_bytes(15, seed + 5)}},
      {"l1.gate.weight_scale", {DType::kFloat32, {4, 1}, scale_bytes(4, seed + 6)}},
      {"l1.up.weight_scale", {DType::kFloat32, {1}, scale_bytes(1, seed + 7)}},
      {"l1.gate.input_scale", {DType::kFloat32, {1}, one_scale}},
      {"l1.up.input_scale", {DType::kFloat32, {}, one_scale}},
      {"l2.weight", {DType::kUInt8, {2, 3}, code_bytes(6, seed + 9)}},
      {"l2.weight_scale", {DType::kFloat8E4M3FN, {2, 1}, "\x30\x38", true}},
  };
}

/// The bytes of the tensors, one after the other.
inline std::string packed_bytes(const TestTensors& tensors, const Json& parts) {
  std::string bytes;
  for (const Json& part : parts) bytes += tensors.at(part["tensor"]).bytes;
  return bytes;
}

inline std::vector<float> numbers_of_bf16(const std::string& bytes) {
  std::vector<float> numbers;
  for (const uint16_t bits : values_of_bytes<uint16_t>(bytes)) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    std::memcpy(&numbers.emplace_back(), &wide, sizeof wide);
  }
  return numbers;
}

inline std::string fp32_from_bf16(const TestTensors& tensors, const Json& parts) {
  return bytes_of_values(numbers_of_bf16(packed_bytes(tensors, parts)));
}

inline std::string fp16_from_bf16(const TestTensors& tensors, const Json& parts) {
  std::vector<_Float16> halves;
  for (const float number : numbers_of_bf16(packed_bytes(tensors, parts))) {
    halves.push_back(static_cast<_Float16>(number));
  }
  return bytes_of_values(halves);
}

inline std::string scales(const TestTensors& tensors, const Json& parts) {
  std::vector<float> result;
  for (const Json& part : parts) {
    const auto own = values_of_bytes<float>(tensors.at(part["tensor"]).bytes);
    const float factor = values_of_bytes<float>(tensors.at(part["factor"]).bytes)[0];
    for (size_t row = 0; row < part["rows"]; ++row) result.push_back(own[own.size() == 1 ? 0 : row] * factor);
  }
  return bytes_of_values(result);
}

inline std::string one_number(const TestTensors& tensors, const Json& parts) {
  return tensors.at(parts[0]["tensor"]).bytes;
}

/// Words of four bytes of a row, those of one place of all rows side by side.
inline std::string word_columns(const TestTensors& tensors, const Json& parts) {
  std::vector<std::string> places;
  for (const Json& part : parts) {
    const TestTensor& tensor = tensors.at(part["tensor"]);
    const auto row = static_cast<size_t>(tensor.shape[1]);
    places.resize(row / 4);
    for (size_t at = 0; at < tensor.bytes.size(); at += 4) places[at % row / 4] += tensor.bytes.substr(at, 4);
  }
  std::string bytes;
  for (const std::string& place : places) bytes += place;
  return bytes;
}

inline Json plain_part(const std::string& tensor) { return {{"tensor", tensor}}; }

inline Json scales_part(const std::string& tensor, int64_t rows, const Json& factor) {
  return {{"tensor", tensor}, {"rows", rows}, {"factor", factor}};
}

inline TensorSpec spec_of(const std::string& name, DType dtype, const Shape& shape) {
  TensorSpec spec{name, dtype, {}};
  for (const int64_t extent : shape) spec.shape.push_back({extent, {}});
  return spec;
}

/// Packed inputs, converted ones, codes of a byte and of half a byte, scales by row, and one number that two tensors
/// tell. None but the first has a size that is a multiple of 16 bytes.
inline std::vector<TestWeight> test_weights() {
  const auto plain = [](std::initializer_list<const char*> tensors) {
    Json parts = Json::array();
    for (const char* tensor : tensors) parts.push_back(plain_part(tensor));
    return parts;
  };
  const char* factor = "l1.gate.input_scale";
  return {
      {spec_of("embed", DType::kBFloat16, {kVocabSize, 4}), plain({"embed.weight"}), packed_bytes},
      {spec_of("l0.qk", DType::kFloat16, {5, 3}), plain({"l0.q.weight", "l0.k.weight"}), fp16_from_bf16},
      {spec_of("l0.norm", DType::kFloat32, {1, 1, 3}), plain({"l0.norm.weight"}), fp32_from_bf16},
      {spec_of("l1.gate_up", DType::kFloat8E4M3FN, {7, 5}), plain({"l1.gate.weight", "l1.up.weight"}), packed_bytes},
      {spec_of("l1.gate_up.scale", DType::kFloat32, {7}),
       Json::array({scales_part("l1.gate.weight_scale", 4, factor), scales_part("l1.up.weight_scale", 3, factor)}),
       scales},
      {spec_of("l1.input_scale", DType::kFloat32, {1}),
       Json::array({scales_part("l1.gate.input_scale", 1, nullptr), scales_part("l1.up.input_scale", 1, nullptr)}),
       one_number},
      {spec_of("l2", DType::kFloat4E2M1FN, {2, 6}), plain({"l2.weight"}), packed_bytes},
  };
}

/// What the mock step mixes into its logits.
inline int64_t mock_weights(const std::vector<TestWeight>& weights, const TestTensors& tensors) {
  int64_t mixed = 0;
  for (const TestWeight& weight : weights) {
    const std::string bytes = weight.bytes(tensors, weight.parts);
    mixed = mock_weight(mixed, bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  return mixed;
}

/// A safetensors file of these tensors, in the order of their names, and where each begins in it.
inline std::string safetensors_file(const TestTensors& tensors, std::map<std::string, int64_t>& offsets) {
  std::vector<FileTensor> listed;
  for (const auto& [name, tensor] : tensors) {
    listed.push_back({name, safetensors_type(tensor.dtype), tensor.shape, tensor.bytes});
  }
  return safetensors(listed, &offsets);
}

}  // namespace sala::test
