// Weights on their way to the GPU: what arrives, what is refused, and what is left after a failure.

#include <algorithm>
#include <thread>

#include "tensorrt_support.h"

namespace sala::test {
namespace {

constexpr int64_t kBlockBytes = int64_t{2} << 20;  // of an upload
constexpr int64_t kMebibyte = int64_t{1} << 20;

class TensorRtWeights : public TensorRt {
 protected:
  static std::vector<float> logits_of(const Model& model) {
    auto session = model.create_session({.max_context = 64, .chunk_tokens = {}});
    EXPECT_TRUE(session) << session.error().message;
    const auto logits = session->prefill(prompt(21));
    EXPECT_TRUE(logits) << logits.error().message;
    return values(*logits);
  }

  static std::vector<float> logits_of(const Mock& mock) { return values(*mock.session().prefill(prompt(21))); }

  static Expected<Model> load_with(FakeBundle& bundle, const std::filesystem::path& checkpoint) {
    LoadOptions options = TensorRt::options();
    options.weights = checkpoint;
    return Model::load(bundle.write(), options);
  }

  static void expect_refused(FakeBundle& bundle, ErrorCode code, std::initializer_list<std::string> words) {
    const auto model = load(bundle);
    ASSERT_FALSE(model);
    expect_error(model.error(), code, words);
    EXPECT_EQ(cuda().used_bytes(), 0);
  }

  /// Weights of several blocks: converted to another width, to the same width, and as they are, of an odd size.
  static void add_large(FakeBundle& bundle) {
    const int64_t elements = 3 * kBlockBytes / 2 + 7;
    for (const auto& [name, dtype, bytes] : {std::tuple("large.fp32", DType::kFloat32, &fp32_from_bf16),
                                             {"large.fp16", DType::kFloat16, &fp16_from_bf16},
                                             {"large.bf16", DType::kBFloat16, &packed_bytes}}) {
      add(bundle, name, {DType::kBFloat16, {elements}, bf16_bytes(elements, 77)}, dtype, bytes);
    }
    const int64_t codes = 2 * kBlockBytes + 1;
    add(bundle, "large.codes", {DType::kInt8, {codes}, code_bytes(codes, 78)}, DType::kInt8, packed_bytes);
    bundle.take_weights();
  }

  /// Many small weights, for uploads that are cut short.
  static void add_many(FakeBundle& bundle, int count) {
    for (int i = 0; i < count; ++i) {
      const std::string name = "many." + std::to_string(i);
      const std::string codes = code_bytes(100, static_cast<uint32_t>(i + 1));
      add(bundle, name, {DType::kInt8, {100}, codes}, DType::kInt8, packed_bytes);
    }
    bundle.take_weights();
  }

 private:
  /// One more weight, of a tensor of its own.
  static void add(FakeBundle& bundle, const std::string& name, TestTensor stored, DType dtype,
                  std::string (*bytes)(const TestTensors&, const Json&)) {
    const std::string tensor = name + ".weight";
    bundle.weights.push_back({spec_of(name, dtype, stored.shape), Json::array({plain_part(tensor)}), bytes});
    bundle.tensors[tensor] = std::move(stored);
  }
};

TEST_F(TensorRtWeights, ArrivePackedConvertedAndScaled) {
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(logits_of(*model), logits_of(bundle.mock()));
  EXPECT_EQ(model->config().fingerprint, FakeBundle::fingerprint(bundle.tensors));
}

TEST_F(TensorRtWeights, EveryOneOfThemCounts) {
  const TestTensors other = test_tensors(9);
  for (const TestWeight& weight : test_weights()) {
    TestTensors changed = test_tensors();
    for (const Json& part : weight.parts) changed[part["tensor"]] = other.at(part["tensor"]);
    FakeBundle bundle(changed);
    const auto model = load(bundle);
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ(logits_of(*model), logits_of(bundle.mock())) << weight.spec.name;
    EXPECT_NE(logits_of(*model), logits_of(bundle.mock_of(test_tensors()))) << weight.spec.name;
  }
}

TEST_F(TensorRtWeights, OfSeveralBlocksArriveWhole) {
  FakeBundle bundle;
  add_large(bundle);
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(logits_of(*model), logits_of(bundle.mock()));
  EXPECT_LE(cuda().peak_pinned_bytes, 8 * 2 * kBlockBytes + kMebibyte) << "two blocks of at most eight threads";
  EXPECT_GE(cuda().peak_pinned_bytes, 2 * kBlockBytes);
}

TEST_F(TensorRtWeights, OfWordColumnsArriveSideBySideInSeveralBlocks) {
  FakeBundle bundle;
  Json parts = Json::array();
  int64_t rows = 0;
  for (const int64_t count : {1, 70'001, 40}) {
    const std::string tensor = "rows" + std::to_string(count);
    const std::string bytes = code_bytes(count * 32, static_cast<uint32_t>(count));
    bundle.tensors[tensor] = {DType::kUInt8, {count, 32}, bytes};
    parts.push_back(plain_part(tensor));
    rows += count;
  }
  ASSERT_GT(rows * 32, kBlockBytes);
  bundle.weights.push_back({spec_of("words", DType::kInt32, {8, rows}), parts, word_columns, "word_columns"});
  bundle.take_weights();
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(logits_of(*model), logits_of(bundle.mock()));
  TestTensors other = bundle.tensors;
  other["rows40"].bytes.back() ^= 1;
  const auto tuned = load_with(bundle, bundle.write_checkpoint(other));
  ASSERT_TRUE(tuned) << tuned.error().message;
  EXPECT_EQ(logits_of(*tuned), logits_of(bundle.mock_of(other)));
  EXPECT_NE(logits_of(*tuned), logits_of(*model));
}

TEST_F(TensorRtWeights, LieInOneBlockThatSessionsShareWithTheBuffersOfAStep) {
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  ASSERT_EQ(cuda().device_blocks.size(), 1u);
  // 400, 30, 12, 35, 28, 4 and 6 bytes, each at a multiple of 256.
  EXPECT_EQ(cuda().used_bytes(), 512 + 6 * 256);
  const auto first = model->create_session({.max_context = 64, .chunk_tokens = {}});
  const int64_t one_session = cuda().used_bytes();
  const auto second = model->create_session({.max_context = 64, .chunk_tokens = {}});
  EXPECT_EQ(cuda().device_blocks.size(), 3u) << "weights, inputs and logits, activations";
  EXPECT_EQ(cuda().used_bytes() - one_session, 5 * cuda().page_bytes) << "its own state and beginnings of four caches";
}

TEST_F(TensorRtWeights, FlippedByteIsRefusedByTheNameOfItsTensor) {
  for (const auto& [name, tensor] : test_tensors()) {
    if (name == "l2.weight_scale") continue;  // no input of the engine
    FakeBundle bundle;
    bundle.write();
    bundle.byte(name, tensor.bytes.size() - 1) ^= 1;
    expect_refused(bundle, ErrorCode::kBundleDamaged, {"tensor " + name, "another SHA-256"});
  }
}

TEST_F(TensorRtWeights, FlippedByteOfALaterBlockIsSeen) {
  FakeBundle bundle;
  add_large(bundle);
  bundle.write();
  bundle.byte("large.fp16.weight", static_cast<size_t>(kBlockBytes) * 2 + 11) ^= 0x10;
  expect_refused(bundle, ErrorCode::kBundleDamaged, {"tensor large.fp16.weight"});
}

TEST_F(TensorRtWeights, TruncatedAndMissingFilesAreRefused) {
  for (const bool is_missing : {false, true}) {
    FakeBundle bundle;
    const auto path = bundle.write() / "graph/model-00002-of-00002.safetensors";
    if (is_missing) {
      std::filesystem::remove(path);
    } else {
      std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
    }
    const auto model = Model::load(path.parent_path().parent_path(), options());
    ASSERT_FALSE(model);
    expect_error(model.error(), ErrorCode::kBundleDamaged, {"model-00002-of-00002.safetensors"});
  }
}

TEST_F(TensorRtWeights, FileThatIsCutWhileItIsReadIsAnErrorThatNamesTheTensor) {
  FakeBundle bundle;
  LoadOptions options = TensorRt::options();
  const auto path = bundle.write();
  options.on_progress = [&](int64_t done, int64_t) {
    // Sizes were compared, nothing was read yet.
    if (done == 0) std::filesystem::resize_file(path / "graph/model-00001-of-00002.safetensors", 700);
    return true;
  };
  const auto model = Model::load(path, options);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kBundleDamaged, {"tensor ", "model-00001-of-00002.safetensors", "truncated"});
}

TEST_F(TensorRtWeights, SwappedFileIsRefused) {
  FakeBundle bundle;
  FakeBundle other(test_tensors(5));
  bundle.write();
  other.write();
  bundle.weight_files = other.weight_files;
  expect_refused(bundle, ErrorCode::kBundleDamaged, {"tensor ", "another SHA-256"});
}

TEST_F(TensorRtWeights, InputThatItsTensorsCannotFillIsRefusedBeforeThePlanIsLoaded) {
  FakeBundle bundle;
  Json& weights = bundle.manifest["engine"]["weights"];
  weights[1]["parts"].erase(1);
  expect_refused(bundle, ErrorCode::kBundleDamaged, {"weight l0.qk", "[5, 3]"});
  EXPECT_TRUE(take_events().empty()) << "TensorRT was not asked";
}

TEST_F(TensorRtWeights, NumbersThatMustAgreeAndDoNotAreRefused) {
  TestTensors tensors = test_tensors();
  tensors["l1.up.input_scale"].bytes = scale_bytes(1, 99);
  FakeBundle bundle(tensors);
  expect_refused(bundle, ErrorCode::kBundleDamaged, {"l1.input_scale", "l1.gate.input_scale", "l1.up.input_scale"});
}

TEST_F(TensorRtWeights, ThatDoNotFitAreCounted) {
  FakeBundle bundle;
  const auto plan_bytes = static_cast<int64_t>(bundle.files[kPlan].size());
  const int64_t needed = 512 + 6 * 256 + plan_bytes;
  cuda().total_bytes = needed - 10;
  expect_refused(bundle, ErrorCode::kOutOfMemory,
                 {"the weights take 2048 bytes", "the engine " + std::to_string(plan_bytes),
                  std::to_string(needed - 10) + " are free, 10 too few"});
  EXPECT_EQ(take_events(), std::vector<std::string>{"runtime"}) << "before the plan is loaded";
  cuda().total_bytes = needed;
  EXPECT_TRUE(load(bundle));
}

TEST_F(TensorRtWeights, BlockThatTheDriverCannotGiveIsCounted) {
  FakeBundle bundle;
  cuda().largest_block = 2047;
  expect_refused(bundle, ErrorCode::kOutOfMemory, {"no room for 2048 bytes", "end other programs on the GPU"});
}

TEST_F(TensorRtWeights, DriverThatFailsInTheMidstLeavesNothingBehind) {
  FakeBundle bundle;
  const auto refused = [&](ErrorCode code, std::initializer_list<std::string> words) {
    expect_refused(bundle, code, words);
    EXPECT_TRUE(cuda().pinned_blocks.empty());
    EXPECT_EQ(cuda().streams, 0);
  };
  for (const int copies : {0, 1, 5}) {
    cuda().copies_before_failure = copies;
    refused(ErrorCode::kEngineFailed, {"could not copy the weight ", " to the GPU", "CUDA error 700"});
  }
  cuda().copies_before_failure = -1;
  for (const int pins : {0, 1}) {
    cuda().pins_before_failure = pins;
    refused(ErrorCode::kOutOfMemory, {"could not pin host memory"});
  }
  cuda().pins_before_failure = -1;
  for (const int streams : {0, 1}) {
    cuda().streams_before_failure = streams;
    refused(ErrorCode::kOutOfMemory, {"could not open a stream"});
  }
  cuda().streams_before_failure = -1;
  cuda().synchronize = CUDA_ERROR_ILLEGAL_ADDRESS;
  refused(ErrorCode::kEngineFailed, {"could not copy the weight ", "CUDA error 700"});
  cuda().synchronize = CUDA_SUCCESS;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(logits_of(*model), logits_of(bundle.mock()));
}

TEST_F(TensorRtWeights, ProgressIsToldOnTheLoadingThreadFromNothingToAll) {
  FakeBundle bundle;
  add_many(bundle, 40);
  cuda().copy_milliseconds = 25;
  std::vector<int64_t> told;
  LoadOptions options = TensorRt::options();
  const auto thread = std::this_thread::get_id();
  const int64_t total = 400 + 30 + 12 + 35 + 28 + 4 + 6 + 40 * 100;
  options.on_progress = [&](int64_t done, int64_t all) {
    EXPECT_EQ(std::this_thread::get_id(), thread);
    EXPECT_EQ(all, total);
    told.push_back(done);
    return true;
  };
  const auto model = Model::load(bundle.write(), options);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(told.front(), 0);
  EXPECT_EQ(told.back(), total);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_TRUE(std::any_of(told.begin(), told.end(), [&](int64_t done) { return done > 0 && done < total; }));
}

TEST_F(TensorRtWeights, LoadStopsSoonWhereverItIsAsked) {
  FakeBundle bundle;
  add_many(bundle, 200);
  cuda().copy_milliseconds = 25;
  for (const int64_t at : {0, 1, 2000}) {
    LoadOptions options = TensorRt::options();
    int64_t last = 0;
    options.on_progress = [&](int64_t done, int64_t) {
      last = done;
      return done < at;
    };
    const auto model = Model::load(bundle.write(), options);
    ASSERT_FALSE(model) << at;
    expect_error(model.error(), ErrorCode::kStopped, {"stopped"});
    EXPECT_LT(last, 20'000) << at;
    EXPECT_EQ(cuda().used_bytes(), 0);
  }
}

TEST_F(TensorRtWeights, OtherWeightsGiveTheLogitsOfABundleBuiltFromThem) {
  TestTensors tuned = test_tensors(31);
  // Scales of one number where the bundle has one for each row, and the other way around.
  tuned["l1.gate.weight_scale"] = {DType::kFloat32, {1}, scale_bytes(1, 41)};
  tuned["l1.up.weight_scale"] = {DType::kFloat32, {3, 1}, scale_bytes(3, 42)};
  FakeBundle bundle;
  FakeBundle built(tuned);
  bundle.write();
  const auto swapped = load_with(bundle, bundle.write_checkpoint(tuned));
  ASSERT_TRUE(swapped) << swapped.error().message;
  const auto reference = load(built);
  ASSERT_TRUE(reference) << reference.error().message;
  EXPECT_EQ(logits_of(*swapped), logits_of(*reference));
  EXPECT_EQ(logits_of(*swapped), logits_of(bundle.mock_of(tuned)));
  EXPECT_EQ(swapped->config().fingerprint, reference->config().fingerprint);
}

TEST_F(TensorRtWeights, StatesBelongToTheWeightsThatMadeThem) {
  FakeBundle bundle;
  const auto path = std::filesystem::path(testing::TempDir()) / "other_weights.state";
  const auto own = load(bundle);
  const auto tuned = load_with(bundle, bundle.write_checkpoint(test_tensors(31)));
  ASSERT_TRUE(own) << own.error().message;
  ASSERT_TRUE(tuned) << tuned.error().message;
  auto session = tuned->create_session({.max_context = 64, .chunk_tokens = {}});
  ASSERT_TRUE(session->prefill(prompt(9)));
  ASSERT_TRUE(session->save(path));
  const auto refused = own->restore(path);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kStateModel);
  auto restored = tuned->restore(path);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(values(*restored->decode(4)), values(*session->decode(4)));
}

TEST_F(TensorRtWeights, UnsuitableCheckpointsAreRefusedByName) {
  FakeBundle bundle;
  bundle.write();
  const auto refused = [&](const TestTensors& tensors, ErrorCode code, std::initializer_list<std::string> words) {
    const auto model = load_with(bundle, bundle.write_checkpoint(tensors));
    ASSERT_FALSE(model);
    expect_error(model.error(), code, words);
    EXPECT_TRUE(take_events().empty()) << "TensorRT was not asked";
  };
  TestTensors tensors = test_tensors(31);
  tensors.erase("l0.k.weight");
  refused(tensors, ErrorCode::kWeightsUnsuitable, {"l0.k.weight"});
  tensors = test_tensors(31);
  tensors["l0.k.weight"].dtype = DType::kFloat16;
  refused(tensors, ErrorCode::kWeightsUnsuitable, {"l0.k.weight", "float16"});
  tensors = test_tensors(31);
  tensors["embed.weight"].shape = {4, kVocabSize};
  refused(tensors, ErrorCode::kWeightsUnsuitable, {"embed.weight", "[4, 50]", "[50, 4]"});
  tensors = test_tensors(31);
  tensors["l2.weight_scale"].bytes[0] ^= 1;  // a constant of the engine
  refused(tensors, ErrorCode::kWeightsUnsuitable, {"l2.weight_scale"});
}

TEST_F(TensorRtWeights, CallersAllocatorGivesTheBlockAndTakesItBack) {
  FakeBundle bundle;
  LoadOptions options = TensorRt::options();
  int64_t taken = 0;
  int blocks = 0;
  options.tensorrt.allocator = DeviceAllocator{
      [&](int64_t bytes) -> void* {
        taken += bytes;
        ++blocks;
        CUdeviceptr data = 0;
        cuda_function<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2")(&data, static_cast<size_t>(bytes));
        return reinterpret_cast<void*>(data);
      },
      [&](void* data, int64_t bytes) {
        taken -= bytes;
        cuda_function<CUresult(CUdeviceptr)>("cuMemFree_v2")(reinterpret_cast<CUdeviceptr>(data));
      }};
  cuda().copies_before_failure = 3;
  const auto refused = Model::load(bundle.write(), options);
  ASSERT_FALSE(refused);
  expect_error(refused.error(), ErrorCode::kEngineFailed, {"could not copy the weight"});
  EXPECT_EQ(blocks, 1);
  EXPECT_EQ(taken, 0);
  cuda().copies_before_failure = -1;
  {
    const auto model = Model::load(bundle.write(), options);
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ(taken, 2048);
    EXPECT_EQ(logits_of(*model), logits_of(bundle.mock()));
  }
  EXPECT_EQ(taken, 0);
}

}  // namespace
}  // namespace sala::test
