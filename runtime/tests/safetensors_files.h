// Writes safetensors files, without the runtime's own reader and writer.

#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sala/tensor.h"

namespace sala::test {

template <class T>
std::string bytes_of_values(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

constexpr std::pair<DType, std::string_view> kSafetensorsTypes[] = {
    {DType::kFloat32, "F32"}, {DType::kFloat16, "F16"}, {DType::kBFloat16, "BF16"}, {DType::kFloat8E4M3FN, "F8_E4M3"},
    {DType::kInt8, "I8"},     {DType::kUInt8, "U8"},    {DType::kInt32, "I32"},
};

/// The spelling of a type in safetensors. The type must have one.
inline std::string safetensors_type(DType dtype) {
  return std::string(std::ranges::find(kSafetensorsTypes, dtype, [](const auto& each) { return each.first; })->second);
}

/// The type of a spelling; fp32 for one that the runtime does not know.
inline DType dtype_of(std::string_view type) {
  const auto* found = std::ranges::find(kSafetensorsTypes, type, [](const auto& each) { return each.second; });
  return found == std::end(kSafetensorsTypes) ? DType::kFloat32 : found->first;
}

/// A tensor as a safetensors file holds it.
struct FileTensor {
  std::string name;
  std::string type;  // in the spelling of safetensors
  Shape shape;
  std::string data;
};

/// A safetensors file of these tensors, in their order. `offsets` takes where each begins in it. The header has an odd
/// length, so that numbers of several bytes lie across their boundaries.
inline std::string safetensors(const std::vector<FileTensor>& tensors,
                               std::map<std::string, int64_t>* offsets = nullptr) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const FileTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.data;
    header[tensor.name] = {{"dtype", tensor.type}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  if (text.size() % 2 == 0) text += ' ';
  const uint64_t length = text.size();
  if (offsets != nullptr) {
    for (const FileTensor& tensor : tensors) {
      (*offsets)[tensor.name] =
          static_cast<int64_t>(sizeof length + length) + header[tensor.name]["data_offsets"][0].get<int64_t>();
    }
  }
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

}  // namespace sala::test
