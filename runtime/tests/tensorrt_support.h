// The fakes of the CUDA driver and of TensorRT, and models that are loaded on them.

#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "fake_bundle.h"
#include "fakes/fake_cuda.h"
#include "fakes/fake_tensorrt.h"
#include "mock_engine.h"
#include "sala/model.h"

namespace sala::test {

inline FakeCuda& cuda() {
  // By its path first: the engine then gets this one for the name of the real driver.
  static void* library = dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  return *reinterpret_cast<FakeCuda* (*)()>(dlsym(library, "fake_cuda"))();
}

/// A function of the fake driver, which is opened, not linked.
template <class Function>
Function* cuda_function(const char* symbol) {
  return reinterpret_cast<Function*>(dlsym(dlopen(FAKE_CUDA, RTLD_NOW), symbol));
}

inline FakeTensorRt& tensorrt_fake() {
  static void* library = dlopen(FAKE_TENSORRT, RTLD_NOW | RTLD_LOCAL);
  return *reinterpret_cast<FakeTensorRt* (*)()>(dlsym(library, "fake_tensorrt"))();
}

/// Fresh fakes for every test, which must leave nothing behind.
class TensorRt : public testing::Test {
 protected:
  void SetUp() override {
    cuda() = FakeCuda();
    tensorrt_fake() = FakeTensorRt();
  }

  void TearDown() override {
    EXPECT_EQ(cuda().used_bytes(), 0);
    EXPECT_TRUE(cuda().reserved.empty());
    EXPECT_TRUE(cuda().mapped.empty());
    EXPECT_TRUE(cuda().pinned_blocks.empty());
    EXPECT_EQ(cuda().contexts, 0);
    EXPECT_EQ(cuda().streams, 0);
    EXPECT_EQ(cuda().graphs, 0);
    EXPECT_EQ(tensorrt_fake().objects, 0);
  }

  static LoadOptions options() {
    LoadOptions options;
    options.runtime = "tensorrt";
    options.tensorrt.library = FAKE_TENSORRT;
    return options;
  }

  static Expected<Model> load(FakeBundle& bundle) { return Model::load(bundle.write(), options()); }

  static std::vector<std::string> take_events() { return std::exchange(tensorrt_fake().events, {}); }

  static void expect_error(const Error& error, ErrorCode code, std::initializer_list<std::string> words) {
    EXPECT_EQ(name_of(error.code), name_of(code)) << error.message;
    EXPECT_EQ(error.message.find('\n'), std::string::npos) << error.message;
    for (const std::string& word : words)
      EXPECT_NE(error.message.find(word), std::string::npos) << word << ": " << error.message;
  }
};

}  // namespace sala::test
