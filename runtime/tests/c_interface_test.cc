// The C interface on the mock engine: what it refuses, what a failure leaves behind, who may outlive whom.

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "c_api/handles.h"
#include "c_errors.h"
#include "mock_engine.h"
#include "sala.h"

namespace sala::test {
namespace {

class CInterface : public testing::Test {
 protected:
  void SetUp() override {
    sala_session_options options = SALA_SESSION_OPTIONS_INIT;
    options.max_context = 100;
    options.chunk_tokens = 16;
    ASSERT_EQ(code_of(sala_session_create(model_.get(), &options, &session_)), 0);
  }
  void TearDown() override { sala_session_destroy(session_); }

  std::vector<float> logits() const {
    size_t count = 0;
    const float* values = sala_session_logits(session_, &count);
    return {values, values + count};
  }
  int32_t prefill(const std::vector<int32_t>& ids, const sala_prefill_options* options = nullptr) {
    return code_of(sala_session_prefill(session_, ids.data(), ids.size(), options));
  }

  Mock mock_;
  std::unique_ptr<sala_model> model_ = std::make_unique<sala_model>(mock_.model);
  sala_session* session_ = nullptr;
};

TEST_F(CInterface, TellsItsVersions) {
  EXPECT_EQ(sala_abi_version(), SALA_ABI_VERSION);
  EXPECT_STREQ(sala_version(), SALA_VERSION);
}

TEST_F(CInterface, ComputesWhatTheCppInterfaceDoes) {
  Session session = mock_.session(100, 16);
  ASSERT_EQ(prefill(prompt(41)), 0);
  EXPECT_EQ(logits(), values(*session.prefill(prompt(41))));
  ASSERT_EQ(code_of(sala_session_decode(session_, 7)), 0);
  EXPECT_EQ(logits(), values(*session.decode(7)));
  EXPECT_EQ(sala_session_position(session_), 42);
  EXPECT_EQ(sala_session_max_context(session_), 100);
  EXPECT_EQ(sala_session_chunk_tokens(session_), 16);
  size_t count = 0;
  const int32_t* tokens = sala_session_tokens(session_, &count);
  EXPECT_TRUE(std::equal(tokens, tokens + count, session.tokens().begin(), session.tokens().end()));
}

TEST_F(CInterface, DrawsWhatTheCppInterfaceDoes) {
  Session session = mock_.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(20)));
  ASSERT_EQ(prefill(prompt(20)), 0);
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  sampling.temperature = 300.0;
  sampling.top_k = 9;
  sampling.top_p = 0.9;
  sampling.repetition_penalty = 1.2;
  sampling.seed = 5;
  sampling.min_p = 0.01;
  sampling.frequency_penalty = 1.5;
  sampling.presence_penalty = -0.5;
  const sala_logit_bias bias[] = {{4, 90.0}, {11, -7.5}};
  sampling.logit_bias = bias;
  sampling.logit_bias_count = 2;
  const SamplingOptions same{300.0, 9, 0.9, 1.2, 5, 0.01, 1.5, -0.5, {{4, 90.0}, {11, -7.5}}};
  int32_t token = -1;
  ASSERT_EQ(code_of(sala_session_sample(session_, &sampling, &token)), 0);
  EXPECT_EQ(token, *session.sample(same));
  sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
  const int32_t none = 0;
  options.max_new_tokens = 5;
  options.stop_tokens = &none;
  sala_generation* generation = nullptr;
  ASSERT_EQ(code_of(sala_generation_create(session_, &options, &sampling, &generation)), 0);
  auto expected = session.generate({5, same, std::vector<int32_t>()});
  int32_t finish = SALA_FINISH_NONE;
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(code_of(sala_generation_next(generation, &token, &finish)), 0);
    EXPECT_EQ(token, **expected->next());
    EXPECT_EQ(finish, SALA_FINISH_NONE);
  }
  ASSERT_EQ(code_of(sala_generation_next(generation, &token, &finish)), 0);
  EXPECT_EQ(finish, SALA_FINISH_MAX_NEW_TOKENS);
  sala_generation_destroy(generation);
}

TEST_F(CInterface, CountsBeyondTheContextAreRefusedBeforeAnyTokenIsRead) {
  const int32_t token = 1;
  const std::map<size_t, int32_t> refused = {{size_t{1} << 30, SALA_ERROR_CONTEXT_EXCEEDED},
                                             {std::numeric_limits<size_t>::max(), SALA_ERROR_INVALID_ARGUMENT}};
  for (const auto& [count, code] : refused) {
    EXPECT_EQ(code_of(sala_session_prefill(session_, &token, count, nullptr)), code);
    sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
    options.stop_tokens = &token;
    options.stop_token_count = count << 2 | 1;
    sala_generation* generation = nullptr;
    EXPECT_EQ(code_of(sala_generation_create(session_, &options, nullptr, &generation)), SALA_ERROR_INVALID_ARGUMENT);
  }
}

TEST_F(CInterface, GenerationStopsAtATokenOfTheCallersChoice) {
  ASSERT_EQ(prefill(prompt(20)), 0);
  Session session = mock_.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(20)));
  const int32_t first = *session.sample({});
  sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
  options.stop_tokens = &first;
  options.stop_token_count = 1;
  sala_generation* generation = nullptr;
  ASSERT_EQ(code_of(sala_generation_create(session_, &options, nullptr, &generation)), 0);
  int32_t token = -1, finish = 0;
  ASSERT_EQ(code_of(sala_generation_next(generation, &token, &finish)), 0);
  EXPECT_EQ(finish, SALA_FINISH_STOP_TOKEN);
  EXPECT_EQ(token, -1) << "a stop token is not given out";
  sala_generation_destroy(generation);
}

TEST_F(CInterface, FedInPiecesEqualsAWholePrompt) {
  Session session = mock_.session(100, 16);
  const auto expected = values(*session.prefill(prompt(50)));
  sala_prefiller* prefiller = nullptr;
  ASSERT_EQ(code_of(sala_prefiller_create(session_, nullptr, -1, &prefiller)), 0);
  const auto ids = prompt(50);
  for (size_t done = 0; done < 50; done += 7) {
    ASSERT_EQ(code_of(sala_prefiller_feed(prefiller, ids.data() + done, std::min<size_t>(7, 50 - done))), 0);
  }
  EXPECT_EQ(sala_session_position(session_), 48) << "steps run as soon as they are full";
  ASSERT_EQ(code_of(sala_prefiller_finish(prefiller)), 0);
  EXPECT_EQ(logits(), expected);
  sala_prefiller_destroy(prefiller);
}

TEST_F(CInterface, ProgressIsToldAndCanStop) {
  struct Seen {
    std::vector<int64_t> done, total;
  } seen;
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  options.user_data = &seen;
  options.on_progress = [](const sala_prefill_progress* progress, void* user_data) {
    static_cast<Seen*>(user_data)->done.push_back(progress->tokens_done);
    static_cast<Seen*>(user_data)->total.push_back(progress->tokens_total);
    return progress->tokens_done < 32 ? 1 : 0;
  };
  EXPECT_EQ(prefill(prompt(60), &options), SALA_ERROR_STOPPED);
  EXPECT_EQ(seen.done, (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(seen.total, (std::vector<int64_t>{60, 60}));
  EXPECT_EQ(sala_session_position(session_), 32);
  EXPECT_EQ(prefill(prompt(10)), 0);
}

TEST_F(CInterface, StopEndsAPrefillAfterItsChunk) {
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  options.user_data = session_;
  options.on_progress = [](const sala_prefill_progress*, void* session) {
    sala_session_stop(static_cast<sala_session*>(session));
    return 1;
  };
  EXPECT_EQ(prefill(prompt(60), &options), SALA_ERROR_STOPPED);
  EXPECT_EQ(sala_session_position(session_), 16);
}

TEST_F(CInterface, RefusesToBeEnteredFromItsProgress) {
  struct Inner {
    sala_session* session;
    std::vector<int32_t> codes;
  } inner{session_, {}};
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  options.user_data = &inner;
  options.on_progress = [](const sala_prefill_progress*, void* user_data) {
    auto* seen = static_cast<Inner*>(user_data);
    seen->codes = {code_of(sala_session_decode(seen->session, 3)), code_of(sala_session_reset(seen->session)),
                   code_of(sala_session_save(seen->session, "unused"))};
    return 1;
  };
  EXPECT_EQ(prefill(prompt(10), &options), 0);
  EXPECT_EQ(inner.codes, std::vector<int32_t>(3, SALA_ERROR_INVALID_ARGUMENT));
}

TEST_F(CInterface, AnExceptionOfTheCallbackDoesNotComeOut) {
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  options.on_progress = [](const sala_prefill_progress*, void*) -> int { throw std::runtime_error("from outside"); };
  sala_error* error = sala_session_prefill(session_, prompt(5).data(), 5, &options);
  EXPECT_STREQ(sala_error_name(error), "Internal");
  EXPECT_EQ(message_of(error), "from outside");
  options.on_progress = [](const sala_prefill_progress*, void*) -> int { throw 7; };
  EXPECT_EQ(prefill(prompt(5), &options), SALA_ERROR_INTERNAL);
  options.on_progress = [](const sala_prefill_progress*, void*) -> int { throw std::bad_alloc(); };
  EXPECT_EQ(prefill(prompt(5), &options), SALA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(prefill(prompt(5)), 0) << "the session is not left busy";
}

TEST_F(CInterface, AFailedStepPoisonsUntilReset) {
  mock_.engine->log_->fail_at = mock_.steps().size();
  EXPECT_EQ(prefill(prompt(5)), SALA_ERROR_ENGINE_FAILED);
  mock_.engine->log_->fail_at.reset();
  EXPECT_EQ(prefill(prompt(5)), SALA_ERROR_SESSION_POISONED);
  EXPECT_EQ(code_of(sala_session_reset(session_)), 0);
  EXPECT_EQ(prefill(prompt(5)), 0);
}

TEST_F(CInterface, WhatTheCallerGivesWrongLeavesTheSessionAsItWas) {
  ASSERT_EQ(prefill(prompt(20)), 0);
  const auto before = logits();
  EXPECT_EQ(prefill({}), SALA_ERROR_EMPTY_PROMPT);
  EXPECT_EQ(prefill({kVocabSize}), SALA_ERROR_TOKEN_OUT_OF_RANGE);
  EXPECT_EQ(prefill(prompt(81)), SALA_ERROR_CONTEXT_EXCEEDED);
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  sampling.top_p = 2.0;
  int32_t token = 0;
  EXPECT_EQ(code_of(sala_session_sample(session_, &sampling, &token)), SALA_ERROR_INVALID_ARGUMENT);
  sala_prefiller* prefiller = nullptr;
  EXPECT_EQ(code_of(sala_prefiller_create(session_, nullptr, -2, &prefiller)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(prefiller, nullptr);
  EXPECT_EQ(sala_session_position(session_), 20);
  EXPECT_EQ(logits(), before);
}

TEST_F(CInterface, NullIsRefusedByName) {
  int32_t token = 0, finish = 0;
  sala_model* model = nullptr;
  sala_session* session = nullptr;
  EXPECT_EQ(message_of(sala_model_load(nullptr, nullptr, &model)), "bundle is NULL");
  EXPECT_EQ(message_of(sala_model_load("x", nullptr, nullptr)), "model is NULL");
  EXPECT_EQ(message_of(sala_session_create(nullptr, nullptr, &session)), "model is NULL");
  EXPECT_EQ(message_of(sala_session_create(model_.get(), nullptr, nullptr)), "session is NULL");
  EXPECT_EQ(message_of(sala_session_restore(model_.get(), nullptr, nullptr, &session)), "state_file is NULL");
  EXPECT_EQ(message_of(sala_session_prefill(nullptr, &token, 1, nullptr)), "session is NULL");
  EXPECT_EQ(message_of(sala_session_prefill(session_, nullptr, 1, nullptr)), "token_ids is NULL");
  EXPECT_EQ(message_of(sala_session_sample(session_, nullptr, nullptr)), "token_id is NULL");
  EXPECT_EQ(message_of(sala_session_save(session_, nullptr)), "state_file is NULL");
  EXPECT_EQ(message_of(sala_session_reset(nullptr)), "session is NULL");
  EXPECT_EQ(message_of(sala_prefiller_create(session_, nullptr, -1, nullptr)), "prefiller is NULL");
  EXPECT_EQ(message_of(sala_prefiller_feed(nullptr, &token, 1)), "prefiller is NULL");
  EXPECT_EQ(message_of(sala_prefiller_finish(nullptr)), "prefiller is NULL");
  EXPECT_EQ(message_of(sala_generation_create(session_, nullptr, nullptr, nullptr)), "generation is NULL");
  EXPECT_EQ(message_of(sala_generation_next(nullptr, &token, &finish)), "generation is NULL");
}

TEST_F(CInterface, FactsOfNullAreNothing) {
  size_t count = 1;
  EXPECT_EQ(sala_model_engine_name(nullptr), nullptr);
  EXPECT_EQ(sala_model_vocab_size(nullptr), 0);
  EXPECT_EQ(sala_model_eos_token_ids(nullptr, &count), nullptr);
  EXPECT_EQ(count, 0u);
  EXPECT_EQ(sala_session_position(nullptr), 0);
  EXPECT_EQ(sala_session_logits(nullptr, &count), nullptr);
  EXPECT_EQ(sala_error_code(nullptr), 0);
  EXPECT_EQ(sala_error_message(nullptr), nullptr);
  sala_session_stop(nullptr);
  sala_model_destroy(nullptr);
  sala_session_destroy(nullptr);
  sala_prefiller_destroy(nullptr);
  sala_generation_destroy(nullptr);
  sala_error_destroy(nullptr);
}

TEST_F(CInterface, FactsOfAModelAreThoseOfItsConfig) {
  size_t count = 0;
  EXPECT_STREQ(sala_model_engine_name(model_.get()), "mock");
  EXPECT_STREQ(sala_model_precision(model_.get()), "fp32");
  EXPECT_STREQ(sala_model_source(model_.get()), "mock");
  EXPECT_STREQ(sala_model_fingerprint(model_.get()), "0123abcd");
  EXPECT_EQ(sala_model_vocab_size(model_.get()), kVocabSize);
  EXPECT_EQ(sala_model_max_position_embeddings(model_.get()), 4096);
  EXPECT_EQ(sala_model_default_max_context(model_.get()), 4096);
  EXPECT_EQ(sala_model_eos_token_ids(model_.get(), &count)[0], 2);
  EXPECT_EQ(count, 1u);
}

TEST_F(CInterface, OptionsOfAnotherVersionAreUnderstoodOrRefused) {
  struct Longer {
    sala_session_options known;
    int64_t later;
  } options{SALA_SESSION_OPTIONS_INIT, 0};
  options.known.struct_size = sizeof options;
  sala_session* session = nullptr;
  const auto create = [&] { return sala_session_create(model_.get(), &options.known, &session); };
  EXPECT_EQ(code_of(create()), 0) << "an unknown member that is zero means its default";
  sala_session_destroy(session);
  session = nullptr;
  options.later = 1;
  EXPECT_NE(message_of(create()).find("does not know: update libsala"), std::string::npos);
  options.known.struct_size = offsetof(sala_session_options, chunk_tokens);
  EXPECT_NE(message_of(create()).find("begin with the SALA_..._INIT"), std::string::npos);
  EXPECT_EQ(session, nullptr);
}

TEST_F(CInterface, LoadOptionsOfTheFirstVersionAreUnderstood) {
  sala_load_options options = SALA_LOAD_OPTIONS_INIT;
  options.runtime = "other";
  options.struct_size = offsetof(sala_load_options, weights);
  sala_model* model = nullptr;
  EXPECT_NE(message_of(sala_model_load("none", &options, &model)).find("runtime 'other' is unknown"),
            std::string::npos);
  options.struct_size = offsetof(sala_load_options, verify_hashes);
  EXPECT_NE(message_of(sala_model_load("none", &options, &model)).find("begin with the SALA_..._INIT"),
            std::string::npos);
  EXPECT_EQ(model, nullptr);
}

TEST_F(CInterface, ArithmeticOfTheCpuIsChosenByItsName) {
  sala_load_options options = SALA_LOAD_OPTIONS_INIT;
  sala_model* model = nullptr;
  const auto refusal = [&](const char* cpu_math, const char* runtime) {
    options.cpu_math = cpu_math;
    options.runtime = runtime;
    return message_of(sala_model_load("none", &options, &model));
  };
  EXPECT_EQ(refusal("quick", nullptr), "cpu_math 'quick' is unknown: choose exact or fast");
  EXPECT_EQ(refusal("fast", "tensorrt"),
            "cpu_math is for the CPU, and the runtime tensorrt runs on a GPU: leave one of them out");
  for (const char* cpu_math : {"fast", "exact", static_cast<const char*>(nullptr)}) {
    EXPECT_NE(refusal(cpu_math, "onnxruntime").find("none is not a directory"), std::string::npos);
  }
  EXPECT_NE(refusal("exact", "tensorrt").find("none is not a directory"), std::string::npos);
  options.struct_size = offsetof(sala_load_options, cpu_math);  // of 1.7
  EXPECT_NE(refusal("quick", nullptr).find("none is not a directory"), std::string::npos);
}

TEST_F(CInterface, SamplingOptionsOfTheFirstVersionAreUnderstood) {
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  sampling.min_p = 7.0;  // behind the end of the older struct
  sampling.struct_size = offsetof(sala_sampling_options, min_p);
  EXPECT_EQ(code_of(sala_model_check_generate(model_.get(), nullptr, &sampling)), 0);
  sampling.struct_size = sizeof sampling;
  EXPECT_EQ(message_of(sala_model_check_generate(model_.get(), nullptr, &sampling)),
            "min_p is 7, expected 0 to 1, 0 for all tokens");
}

TEST_F(CInterface, RefusesAWrongLogitBias) {
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  const sala_logit_bias bias[] = {{4, 1.0}, {kVocabSize, 1.0}, {4, 2.0}};
  const auto message = [&](const sala_logit_bias* entries, size_t count) {
    sampling.logit_bias = entries;
    sampling.logit_bias_count = count;
    return message_of(sala_model_check_generate(model_.get(), nullptr, &sampling));
  };
  EXPECT_EQ(message(bias, 0), "");
  EXPECT_EQ(message(bias, 1), "");
  EXPECT_NE(message(bias, 2).find("expected 0 to 49"), std::string::npos);
  EXPECT_EQ(message(bias, 3), "logit_bias has token 4 twice, expected each token once");
  EXPECT_EQ(message(nullptr, 2), "logit_bias_count is 2, expected 0 where logit_bias is NULL");
  EXPECT_NE(message(bias, SIZE_MAX).find("no more than 2147483647"), std::string::npos);
}

TEST_F(CInterface, HandlesMayBeDestroyedInAnyOrder) {
  sala_prefiller* prefiller = nullptr;
  ASSERT_EQ(code_of(sala_prefiller_create(session_, nullptr, -1, &prefiller)), 0);
  model_.reset();
  sala_session_destroy(session_);
  session_ = nullptr;
  EXPECT_EQ(code_of(sala_prefiller_feed(prefiller, prompt(20).data(), 20)), 0);
  EXPECT_EQ(code_of(sala_prefiller_finish(prefiller)), 0);
  sala_prefiller_destroy(prefiller);
}

TEST_F(CInterface, AnErrorOutlivesWhatItIsAbout) {
  sala_error* error = sala_session_decode(session_, -1);
  sala_session_destroy(session_);
  session_ = nullptr;
  model_.reset();
  EXPECT_STREQ(sala_error_name(error), "TokenOutOfRange");
  EXPECT_EQ(code_of(error), SALA_ERROR_TOKEN_OUT_OF_RANGE);
}

TEST_F(CInterface, SavesAndRestores) {
  const std::string path = testing::TempDir() + "/c_interface.state";
  ASSERT_EQ(prefill(prompt(37)), 0);
  ASSERT_EQ(code_of(sala_session_save(session_, path.c_str())), 0);
  sala_session* restored = nullptr;
  ASSERT_EQ(code_of(sala_session_restore(model_.get(), path.c_str(), nullptr, &restored)), 0);
  EXPECT_EQ(code_of(sala_session_decode(restored, 9)), 0);
  EXPECT_EQ(code_of(sala_session_decode(session_, 9)), 0);
  size_t count = 0;
  const float* values = sala_session_logits(restored, &count);
  EXPECT_EQ(std::vector<float>(values, values + count), logits());
  sala_session_destroy(restored);
  EXPECT_EQ(code_of(sala_session_restore(model_.get(), "none", nullptr, &restored)), SALA_ERROR_STATE_UNREADABLE);
  std::remove(path.c_str());
}

class CState : public CInterface {
 protected:
  void SetUp() override {
    CInterface::SetUp();
    folder_ = std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "a.state";
  }
  void TearDown() override {
    std::filesystem::remove_all(folder_);
    CInterface::TearDown();
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(CState, IsSavedToATargetThatWasOpenedFirst) {
  sala_state_target* target = nullptr;
  ASSERT_EQ(code_of(sala_state_target_open(path_.c_str(), &target)), 0);
  sala_state_target* second = nullptr;
  EXPECT_EQ(code_of(sala_state_target_open(path_.c_str(), &second)), SALA_ERROR_STATE_UNWRITABLE);
  EXPECT_EQ(second, nullptr);
  ASSERT_EQ(prefill(prompt(20)), 0);
  int64_t bytes = 0;
  ASSERT_EQ(code_of(sala_model_state_bytes(model_.get(), 20, &bytes)), 0);
  EXPECT_EQ(code_of(sala_state_target_require_room(target, bytes)), 0);
  EXPECT_EQ(code_of(sala_state_target_require_room(target, INT64_MAX)), SALA_ERROR_STATE_UNWRITABLE);
  EXPECT_EQ(code_of(sala_state_target_require_room(target, -1)), SALA_ERROR_INVALID_ARGUMENT);
  ASSERT_EQ(code_of(sala_session_save_to(session_, target)), 0);
  EXPECT_EQ(code_of(sala_session_save_to(session_, target)), SALA_ERROR_INVALID_ARGUMENT) << "one save";
  sala_state_target_destroy(target);
  EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(path_)), bytes);
  sala_session* restored = nullptr;
  ASSERT_EQ(code_of(sala_session_restore(model_.get(), path_.c_str(), nullptr, &restored)), 0);
  EXPECT_EQ(sala_session_position(restored), 20);
  sala_session_destroy(restored);
}

TEST_F(CState, ATargetThatIsNotSavedToLeavesNothing) {
  sala_state_target* target = nullptr;
  ASSERT_EQ(code_of(sala_state_target_open(path_.c_str(), &target)), 0);
  EXPECT_FALSE(std::filesystem::is_empty(folder_));
  sala_state_target_destroy(target);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
  EXPECT_EQ(code_of(sala_state_target_open(folder_.c_str(), &target)), SALA_ERROR_STATE_UNWRITABLE);
  EXPECT_EQ(code_of(sala_state_target_open(nullptr, &target)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(code_of(sala_session_save_to(session_, nullptr)), SALA_ERROR_INVALID_ARGUMENT);
  sala_state_target_destroy(nullptr);
}

TEST_F(CInterface, ChecksOptionsBeforeThereIsASession) {
  sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  EXPECT_EQ(code_of(sala_model_check_generate(model_.get(), &options, &sampling)), 0);
  EXPECT_EQ(code_of(sala_model_check_generate(model_.get(), nullptr, nullptr)), 0);
  sampling.top_p = 0;
  EXPECT_EQ(message_of(sala_model_check_generate(model_.get(), &options, &sampling)),
            "top_p is 0, expected more than 0 and at most 1");
  const int32_t outside = static_cast<int32_t>(kVocabSize);
  options.stop_tokens = &outside;
  options.stop_token_count = 1;
  EXPECT_EQ(code_of(sala_model_check_generate(model_.get(), &options, nullptr)), SALA_ERROR_INVALID_ARGUMENT);
  options.stop_tokens = nullptr;
  EXPECT_EQ(code_of(sala_model_check_generate(model_.get(), &options, nullptr)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(code_of(sala_model_check_generate(nullptr, nullptr, nullptr)), SALA_ERROR_INVALID_ARGUMENT);
  int64_t bytes = -7;
  EXPECT_EQ(code_of(sala_model_state_bytes(model_.get(), -1, &bytes)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(bytes, -7);
}

TEST_F(CInterface, AStopOutlivesCallsThatAreRefused) {
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  options.user_data = session_;
  options.on_progress = [](const sala_prefill_progress*, void* data) {
    auto* session = static_cast<sala_session*>(data);
    sala_session_stop(session);
    const int32_t id = 3;
    sala_prefiller* refused = nullptr;
    EXPECT_EQ(code_of(sala_session_prefill(session, &id, 1, nullptr)), SALA_ERROR_INVALID_ARGUMENT);
    EXPECT_EQ(code_of(sala_prefiller_create(session, nullptr, -1, &refused)), SALA_ERROR_INVALID_ARGUMENT);
    return 1;
  };
  EXPECT_EQ(prefill(prompt(60), &options), SALA_ERROR_STOPPED);
  EXPECT_EQ(sala_session_position(session_), 16);
  sala_prefiller* prefiller = nullptr;
  EXPECT_EQ(code_of(sala_prefiller_create(session_, nullptr, INT64_MAX, &prefiller)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(code_of(sala_prefiller_create(session_, nullptr, INT64_MIN, &prefiller)), SALA_ERROR_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace sala::test
