// A checkpoint in a folder of its own, and the manifest of a bundle that was built of it.

#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "bundle/manifest.h"

namespace sala::test {

inline std::string bytes(std::initializer_list<int> values) { return {values.begin(), values.end()}; }

template <class T>
std::string bytes_of_numbers(const std::vector<T>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
}

/// A tensor as the files of a checkpoint hold it.
struct FileTensor {
  std::string name;
  std::string type;  // in the spelling of safetensors
  Shape shape;
  std::string data;
};

inline std::string safetensors(const std::vector<FileTensor>& tensors, size_t* data_start = nullptr) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const FileTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.data;
    header[tensor.name] = {{"dtype", tensor.type}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  if (data_start != nullptr) *data_start = sizeof length + text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = std::filesystem::path(testing::TempDir()) / (std::string(test->test_suite_name()) + test->name());
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void write(const std::string& name, const std::string& content) const {
    std::ofstream(directory_ / name, std::ios::binary) << content;
  }

  /// Writes the tensors as a file of the bundle, and names them in the manifest.
  void store(const std::string& file, const std::vector<FileTensor>& tensors) {
    size_t offset = 0;
    const std::string content = safetensors(tensors, &offset);
    write(file, content);
    manifest_.weights_included = true;
    manifest_.weight_files.emplace_back(file, content.size());
    for (const FileTensor& tensor : tensors) {
      manifest_.tensors[tensor.name] = {file,
                                        static_cast<int64_t>(offset),
                                        static_cast<int64_t>(tensor.data.size()),
                                        dtype_of(tensor.type),
                                        tensor.shape,
                                        sha256(tensor.data),
                                        false};
      offset += tensor.data.size();
    }
  }

  static DType dtype_of(const std::string& type) {
    if (type == "BF16") return DType::kBFloat16;
    if (type == "F16") return DType::kFloat16;
    if (type == "F8_E4M3") return DType::kFloat8E4M3FN;
    if (type == "I8") return DType::kInt8;
    if (type == "U8") return DType::kUInt8;
    if (type == "I32") return DType::kInt32;
    return DType::kFloat32;
  }

  std::filesystem::path directory_;
  Manifest manifest_;
};

}  // namespace sala::test
