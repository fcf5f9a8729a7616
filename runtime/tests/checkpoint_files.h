// A checkpoint in a folder of its own, and the manifest of a bundle that was built of it.

#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "bundle/bundle.h"
#include "safetensors_files.h"

namespace sala::test {

inline std::string bytes(std::initializer_list<int> values) { return {values.begin(), values.end()}; }

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
    std::map<std::string, int64_t> offsets;
    const std::string content = safetensors(tensors, &offsets);
    write(file, content);
    manifest_.weights_included = true;
    manifest_.weight_files.emplace_back(file, content.size());
    for (const FileTensor& tensor : tensors) {
      manifest_.tensors[tensor.name] = {file,
                                        offsets[tensor.name],
                                        static_cast<int64_t>(tensor.data.size()),
                                        dtype_of(tensor.type),
                                        tensor.shape,
                                        sha256(tensor.data),
                                        false};
    }
  }

  /// The bundle with its files of now.
  Bundle bundle() const {
    Bundle result{directory_, manifest_, {}};
    for (const auto& [name, size] : manifest_.weight_files) {
      auto file = File::open(directory_ / name, ErrorCode::kBundleDamaged);
      EXPECT_TRUE(file) << file.error().message;
      if (file) result.files[name] = std::make_shared<const File>(*std::move(file));
    }
    return result;
  }

  std::filesystem::path directory_;
  Manifest manifest_;
};

}  // namespace sala::test
