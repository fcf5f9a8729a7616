// What is proved before a plan reaches TensorRT, and what TensorRT says of it.

#include "engines/tensorrt/plan.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

class TensorRtLoad : public TensorRt {
 protected:
  /// The error of a bundle that TensorRT must not see the plan of.
  void expect_refused(FakeBundle& bundle, ErrorCode code, std::initializer_list<std::string> words) {
    const auto model = load(bundle);
    ASSERT_FALSE(model);
    expect_error(model.error(), code, words);
    for (const std::string& event : take_events()) EXPECT_EQ(event.find("deserialize"), std::string::npos) << event;
  }
};

TEST_F(TensorRtLoad, LoadsThePlanWithItsLibraryAllowed) {
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(take_events(), (std::vector<std::string>{"runtime", "host code allowed", "deserialize"}));
  EXPECT_EQ(model->engine().name(), "tensorrt");
  EXPECT_EQ(model->engine().precision(), "bf16");
  EXPECT_EQ(model->engine().limits().max_context, kCapacity);
  EXPECT_EQ(model->engine().limits().max_chunk_tokens, kChunk);
  EXPECT_EQ(model->runtime_reason(), "");
}

TEST_F(TensorRtLoad, LibraryThatIsMissingSaysWhatToInstall) {
  FakeBundle bundle;
  LoadOptions options = TensorRtLoad::options();
  options.tensorrt.library = "nowhere/libtensorrt_rtx.so.1";
  const auto model = Model::load(bundle.write(), options);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kLibraryMissing,
               {"TensorRT for RTX 1.7.1.116 was not found", "nowhere", "tensorrt-rtx-cu13==1.7.1.116"});
}

TEST_F(TensorRtLoad, LibraryOfSomethingElseIsRefused) {
  FakeBundle bundle;
  LoadOptions options = TensorRtLoad::options();
  options.tensorrt.library = FAKE_CUDA;
  const auto model = Model::load(bundle.write(), options);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kLibraryUnusable, {"is not TensorRT: it lacks createInferRuntime_INTERNAL"});
}

TEST_F(TensorRtLoad, OtherVersionIsRefused) {
  tensorrt_fake().version[2] = 2;
  FakeBundle bundle;
  expect_refused(bundle, ErrorCode::kLibraryUnusable,
                 {"installed TensorRT for RTX is 1.7.2.116, the bundle's engine needs 1.7.1.116"});
}

TEST_F(TensorRtLoad, VersionOfUnknownInterfaceIsRefused) {
  tensorrt_fake().version[0] = 2;
  FakeBundle bundle;
  bundle.manifest["engine"]["tensorrt_version"] = "2.7.1.116";
  expect_refused(bundle, ErrorCode::kLibraryUnusable,
                 {"2.7.1.116 is not known to this release, which knows 1.6 and 1.7"});
}

TEST_F(TensorRtLoad, RuntimeThatCannotBeMadeIsReported) {
  tensorrt_fake().no_runtime = true;
  FakeBundle bundle;
  expect_refused(bundle, ErrorCode::kEngineFailed, {"TensorRT for RTX 1.7.1.116 could not start"});
}

TEST_F(TensorRtLoad, ChangedPlanIsRefusedBeforeTensorRtSeesIt) {
  FakeBundle bundle;
  bundle.write();
  bundle.files[kPlan][3] ^= 1;
  expect_refused(bundle, ErrorCode::kBundleDamaged, {kPlan, "another SHA-256 than bundle.json says"});
}

TEST_F(TensorRtLoad, PluginLibraryOfAnotherHashIsRefused) {
  FakeBundle bundle;
  bundle.manifest["engine"]["plugin_library_sha256"] = sha256("another library");
  expect_refused(bundle, ErrorCode::kBundleDamaged, {kPlan, "not the plugin library of bundle.json", "do not trust"});
}

TEST_F(TensorRtLoad, SecondLibraryBesideThePluginsIsRefused) {
  FakeBundle bundle;
  bundle.files[kPlan] += host_library('x');
  expect_refused(bundle, ErrorCode::kBundleDamaged, {kPlan, "not the plugin library of bundle.json"});
}

TEST_F(TensorRtLoad, PlanWithoutItsLibraryIsRefused) {
  FakeBundle bundle;
  bundle.files[kPlan].resize(bundle.files[kPlan].size() - host_library().size());
  expect_refused(bundle, ErrorCode::kBundleDamaged, {kPlan, "lacks the plugin library"});
}

TEST_F(TensorRtLoad, OtherElfFilesOfAPlanAreNotLibrariesOfTheHost) {
  std::string cubin = host_library();
  const uint16_t cuda_machine = 190;
  std::memcpy(cubin.data() + offsetof(Elf64_Ehdr, e_machine), &cuda_machine, sizeof cuda_machine);
  EXPECT_FALSE(tensorrt::find_embedded_library("x" + cubin, 0));
  const auto found = tensorrt::find_embedded_library(cubin + host_library(), 0);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->offset, static_cast<int64_t>(cubin.size()));
  EXPECT_EQ(found->bytes, static_cast<int64_t>(host_library().size()));
  EXPECT_FALSE(tensorrt::find_embedded_library(host_library().substr(0, 40), 0)) << "a header that is cut off";
  EXPECT_FALSE(tensorrt::find_embedded_library(host_library().substr(0, 100), 0)) << "a library that is cut off";
}

TEST_F(TensorRtLoad, PlanWhoseTensorsAreOthersIsRefused) {
  const auto refused = [&](const std::string& from, const std::string& to, std::initializer_list<std::string> words) {
    FakeBundle bundle;
    std::string& plan = bundle.files[kPlan];
    ASSERT_NE(plan.find(from), std::string::npos) << from;
    plan.replace(plan.find(from), from.size(), to);
    const auto model = load(bundle);
    ASSERT_FALSE(model) << to;
    expect_error(model.error(), ErrorCode::kBundleDamaged, words);
  };
  refused("input_ids 8", "input_ids 3", {"input_ids in another type than int64"});
  refused("logits 0 2 -1 50", "logits 0 2 -1 51", {"logits in another shape than [-1, 50]"});
  refused("1 input_ids", "1 input_idx", {"the tensor input_idx"});
  refused("embed 7 2 50 4", "embed 1 2 50 4", {"embed in another type than bfloat16"});
  refused("l1.gate_up 6", "l1.gate_up 2", {"l1.gate_up in another type than float8_e4m3fn"});
  refused("l2 10 2 2 6", "l2 10 2 2 3", {"l2 in another shape than [2, 6]"});
  refused("1 l0.norm ", "2 l0.norm ", {"the tensor l0.norm"});
  refused("tensor 1 l0.norm 0 3 1 1 3\n", "", {"has 22 tensors, bundle.json says 23"});
  refused("input_ids 8 2 -1 -1 1 16", "input_ids 8 2 -1 -1 1 17", {"input_ids up to another shape in prefill"});
}

TEST_F(TensorRtLoad, WeightThatIsListedTwiceIsRefused) {
  FakeBundle bundle;
  Json& weights = bundle.manifest["engine"]["weights"];
  weights.push_back(weights[0]);
  const auto model = load(bundle);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kBundleDamaged, {"two inputs have the name embed"});
}

TEST_F(TensorRtLoad, MissingProfileIsRefused) {
  FakeBundle bundle;
  bundle.manifest["engine"]["profiles"].erase("decode");
  expect_refused(bundle, ErrorCode::kBundleDamaged, {"engine.profiles has no decode"});
}

TEST_F(TensorRtLoad, DriverTooOldForTensorRtSaysWhichToInstall) {
  tensorrt_fake().deserialize_error =
      "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)";
  FakeBundle bundle;
  expect_refused(bundle, ErrorCode::kDeviceUnsuitable,
                 {"driver is too old for TensorRT for RTX 1.7.1.116", "install driver 580 or later"});
}

TEST_F(TensorRtLoad, OtherFailuresCarryTensorRtsWords) {
  tensorrt_fake().deserialize_error = "Serialization (magic tag does not match)\nsecond line";
  FakeBundle bundle;
  expect_refused(bundle, ErrorCode::kEngineFailed, {"could not load engine/engine.plan", "magic tag does not match"});
}

TEST_F(TensorRtLoad, AutoTakesTensorRtWhereItsGpuIs) {
  FakeBundle bundle;
  LoadOptions options = TensorRtLoad::options();
  options.runtime = "auto";
  const auto model = Model::load(bundle.write(), options);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->engine().name(), "tensorrt");
}

TEST_F(TensorRtLoad, AutoDoesNotHideADamagedPlan) {
  FakeBundle bundle;
  bundle.write();
  bundle.files[kPlan][3] ^= 1;
  LoadOptions options = TensorRtLoad::options();
  options.runtime = "auto";
  const auto model = Model::load(bundle.write(), options);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kBundleDamaged, {kPlan});
}

}  // namespace
}  // namespace sala::test
