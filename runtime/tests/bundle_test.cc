// What is opened of a bundle, and what is read when something takes the names of its files.

#include "bundle/bundle.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/sha256.h"
#include "fake_bundle.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGraph = "graph/cpu.onnx";

ErrorCode code_of(const fs::path& path) {
  const auto bundle = Bundle::open(path);
  return bundle ? ErrorCode{} : bundle.error().code;
}

/// The graph as an engine reads it.
std::string graph_of(const Bundle& bundle) {
  const auto text = read_file(bundle.file(kGraph), 1 << 20);
  return text ? *text : text.error().message;
}

TEST(BundleFiles, AreOpenedWithTheirSizesAndHashes) {
  FakeBundle fake;
  const auto bundle = Bundle::open(fake.write());
  ASSERT_TRUE(bundle) << bundle.error().message;
  EXPECT_TRUE(bundle->verify_hashes());
  EXPECT_EQ(graph_of(*bundle), "not used");
  EXPECT_EQ(bundle->files.size(), fake.files.size() + fake.weight_files.size());
}

TEST(BundleFiles, AreRefusedIfTheyAreNoBundle) {
  FakeBundle fake;
  const fs::path path = fake.write();
  EXPECT_EQ(code_of(path / "missing"), ErrorCode::kBundleMissing);
  EXPECT_EQ(code_of(path / "bundle.json"), ErrorCode::kBundleMissing);
  EXPECT_NE(Bundle::open(path / "bundle.json").error().message.find("bundle.json is not a directory"),
            std::string::npos);
  fs::remove(path / "bundle.json");
  EXPECT_EQ(code_of(path), ErrorCode::kBundleMissing);
  fs::create_directory(path / "bundle.json");
  EXPECT_EQ(code_of(path), ErrorCode::kBundleDamaged);
}

TEST(BundleFiles, AreRefusedWithOneMissingOrOfAnotherSize) {
  FakeBundle fake;
  const fs::path path = fake.write();
  write_file(path / kGraph, "shorter");
  EXPECT_EQ(code_of(path), ErrorCode::kBundleDamaged);
  fs::remove(path / kGraph);
  EXPECT_EQ(code_of(path), ErrorCode::kBundleDamaged);
}

TEST(BundleFiles, AreRefusedWithSomethingInPlaceOfAFile) {
  FakeBundle fake;
  const fs::path path = fake.write();
  for (const std::string name : {kGraph, "bundle.json"}) {
    fs::remove(path / name);
    ASSERT_EQ(mkfifo((path / name).c_str(), 0600), 0);
    EXPECT_EQ(Bundle::open(path).error().message.find((path / name).string() + " is not a file"), 0u);
    fs::remove(path / name);
    fs::create_symlink("/dev/zero", path / name);
    EXPECT_EQ(Bundle::open(path).error().message.find((path / name).string() + " is not a file"), 0u);
  }
}

TEST(BundleFiles, AreRefusedWithWeightsOfAnotherSizeUnlessItWasBuiltWithoutThem) {
  FakeBundle fake;
  const fs::path path = fake.write();
  const std::string weights = fake.manifest["weights"]["files"][0]["path"];
  write_file(path / weights, "shorter");
  EXPECT_EQ(code_of(path), ErrorCode::kBundleDamaged);
  fs::remove(path / weights);
  EXPECT_EQ(code_of(path), ErrorCode::kBundleDamaged);
  fake.manifest["weights"]["included"] = false;
  write_file(path / "bundle.json", fake.manifest.dump());
  EXPECT_EQ(code_of(path), ErrorCode{});
}

TEST(BundleFiles, AreRefusedWithAChangedOne) {
  FakeBundle fake;
  const fs::path path = fake.write();
  write_file(path / kGraph, "not usee");
  const auto bundle = Bundle::open(path);
  ASSERT_TRUE(bundle);
  EXPECT_EQ(bundle->verify_hashes().error().code, ErrorCode::kBundleDamaged);
}

TEST(BundleFiles, AreReadAsTheyWereOpenedWhateverTakesTheirNames) {
  FakeBundle fake;
  const fs::path path = fake.write();
  const auto bundle = Bundle::open(path);
  ASSERT_TRUE(bundle);
  const fs::path away = path.string() + ".away";
  fs::rename(path, away);
  write_file(path / kGraph, "another bundle");
  EXPECT_EQ(graph_of(*bundle), "not used");
  EXPECT_TRUE(bundle->verify_hashes());
}

TEST(BundleFiles, AreThoseOfTheDirectoryThatADescriptorStandsFor) {
  FakeBundle fake;
  const fs::path path = fake.write();
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  fs::rename(path, path.string() + ".away");
  fs::create_directory(path);
  EXPECT_EQ(code_of(path), ErrorCode::kBundleMissing);
  const auto bundle = Bundle::open(path, descriptor);
  ASSERT_TRUE(bundle) << bundle.error().message;
  EXPECT_EQ(graph_of(*bundle), "not used");
  EXPECT_EQ(bundle->file(kGraph).path(), path / kGraph) << "the path is for messages";
  EXPECT_EQ(close(descriptor), 0) << "it stays the caller's";
}

TEST(BundleFiles, AreRefusedWithAnotherManifestThanTheOneThatWasRead) {
  FakeBundle fake;
  const fs::path path = fake.write();
  const auto read = read_file(path / "bundle.json", 1 << 20, ErrorCode::kBundleDamaged);
  ASSERT_TRUE(read);
  EXPECT_TRUE(Bundle::open(path, -1, sha256(*read)));
  const auto refused = Bundle::open(path, -1, sha256(*read + " "));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kBundleDamaged);
  EXPECT_NE(refused.error().message.find("bundle.json was replaced while the bundle was loaded"), std::string::npos);
}

TEST(BundleFiles, AreNotCalledDamagedWhenThisProcessMayOpenNoMore) {
  FakeBundle fake;
  const fs::path path = fake.write();
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int lowest = dup(STDIN_FILENO);
  ASSERT_GE(lowest, 0);
  close(lowest);
  for (rlim_t more = 0; more < 3; ++more) {
    const rlimit few = {static_cast<rlim_t>(lowest) + more, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    const auto bundle = Bundle::open(path);
    setrlimit(RLIMIT_NOFILE, &before);
    ASSERT_FALSE(bundle) << more;
    EXPECT_TRUE(bundle.error().message.ends_with("cannot be opened: Too many open files")) << bundle.error().message;
  }
}

TEST(BundleFiles, AreRefusedOfADescriptorOfNoDirectory) {
  FakeBundle fake;
  const fs::path path = fake.write();
  const int descriptor = open((path / "bundle.json").c_str(), O_RDONLY | O_CLOEXEC);
  const auto of_a_file = Bundle::open(path, descriptor);
  ASSERT_FALSE(of_a_file);
  EXPECT_EQ(of_a_file.error().code, ErrorCode::kBundleMissing);
  EXPECT_NE(of_a_file.error().message.find("is not that of a directory"), std::string::npos);
  close(descriptor);
  EXPECT_EQ(Bundle::open(path, 1 << 20).error().code, ErrorCode::kBundleMissing);
}

TEST(BundleFiles, WithoutWeightsSayHowToGiveThem) {
  FakeBundle fake;
  fake.write();
  fake.manifest["weights"]["included"] = false;
  const auto model = Model::load(fake.write());
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kWeightsMissing);
  EXPECT_NE(model.error().message.find("(--weights DIR)"), std::string::npos) << model.error().message;
}

TEST(BundleFiles, NeedALibraryThatCanBeLoaded) {
  FakeBundle fake;
  LoadOptions options;
  options.runtime = "onnxruntime";
  options.onnxruntime_library = fake.write() / kGraph;
  const auto model = Model::load(fake.write(), options);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kLibraryMissing);
}

}  // namespace
}  // namespace sala::test
