// Forks, checkpoints and ways back, on memory that shares pages and on memory that does not.

#include <sys/wait.h>
#include <unistd.h>

#include "session_schedule.h"

namespace sala::test {
namespace {

Mock paged_mock() {
  Mock mock;
  mock.engine->paged_memory_ = paged_host_memory();
  return mock;
}

std::vector<int64_t> positions(const Session& session) {
  return {session.checkpoints().begin(), session.checkpoints().end()};
}

TEST(Fork, EveryScheduleGivesTheLogitsOfEachSessionAlone) {
  const Mock reference;
  int64_t accepted = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    const Mock mock = seed % 3 == 0 ? Mock() : paged_mock();
    {
      Schedule schedule(mock.model, reference, seed);
      schedule.run(150);
      accepted += schedule.accepted();
    }
    EXPECT_EQ(mock.model.engine().memory().used_bytes(), 0) << "sessions that are gone hold no memory";
    if (HasFailure()) return;
  }
  EXPECT_GT(accepted, 1000) << "drafts were often right";
}

TEST(Fork, TakesNoMemoryUntilItGoesOn) {
  const Mock mock = paged_mock();
  Memory& memory = mock.model.engine().memory();
  Session book = *mock.model.create_session({.max_context = 1 << 20, .chunk_tokens = 2048});
  ASSERT_TRUE(book.prefill(prompt(100'000)));
  const int64_t before = memory.used_bytes();
  EXPECT_LT(before, 7 << 20) << "not what it may hold, but what it holds";
  std::vector<Session> forks;
  for (int i = 0; i < 100; ++i) forks.push_back(*book.fork());
  EXPECT_EQ(memory.used_bytes(), before);
  ASSERT_TRUE(forks[0].decode(5));
  EXPECT_EQ(memory.used_bytes() - before, 5 * memory.page_bytes())
      << "the state, and the last page of two heads of keys and of values: this token completes no compressed key";
  forks.clear();
  EXPECT_EQ(memory.used_bytes(), before);
  ASSERT_TRUE(book.rewind(book.checkpoints().front()));
  EXPECT_LT(memory.used_bytes(), before);
  ASSERT_TRUE(book.reset());
  EXPECT_LE(memory.used_bytes(), 5 * memory.page_bytes()) << "the state, and the beginnings of four caches";
}

TEST(Fork, OutlivesTheSessionThatItCameFrom) {
  const Mock mock = paged_mock();
  Session same = mock.session();
  ASSERT_TRUE(same.prefill(prompt(300)));
  Session book = *same.fork();
  Session fork = *book.fork();
  book = mock.session();
  EXPECT_EQ(values(*fork.prefill(prompt(30))), values(*same.prefill(prompt(30))));
}

TEST(Fork, OfAPoisonedSessionIsRefused) {
  const Mock mock = paged_mock();
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(30)));
  mock.engine->log_->fail_at = mock.steps().size();
  EXPECT_FALSE(session.decode(3));
  EXPECT_EQ(session.fork().error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.rewind(30).error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.checkpoint().error().code, ErrorCode::kSessionPoisoned);
  ASSERT_TRUE(session.reset());
  EXPECT_TRUE(session.fork());
}

TEST(Fork, OfTheProcessMayNotUseAndDoesNotHarmTheSessionsOfItsParent) {
  const Mock mock = paged_mock();
  std::optional<Session> session = mock.session();
  const auto ids = prompt(200);
  const std::vector<float> wanted = values(*mock.session().prefill(ids));
  ASSERT_TRUE(session->prefill(std::span(ids).first(150), {.context_length = 200, .on_progress = {}}));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto refused = session->decode(3);
    const bool is_told = !refused && refused.error().message.find("load the model after the fork") != std::string::npos;
    const bool is_empty = session->tokens().empty();
    session.reset();
    _exit(is_told && is_empty ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(values(*session->prefill(std::span(ids).subspan(150))), wanted);
}

TEST(Checkpoints, AreWhereTurnsEndAndWithinALongPrompt) {
  const Mock mock = paged_mock();
  Session session = *mock.model.create_session({.max_context = 4096, .chunk_tokens = 16});
  EXPECT_TRUE(positions(session).empty());
  ASSERT_TRUE(session.prefill(prompt(40)));
  EXPECT_EQ(positions(session), (std::vector<int64_t>{16, 32, 40}));
  ASSERT_TRUE(session.sample({}));
  EXPECT_EQ(positions(session).size(), 3u) << "what is drawn has not run";
  ASSERT_TRUE(session.decode(5));
  ASSERT_TRUE(session.decode(6));
  ASSERT_TRUE(session.prefill(prompt(3)));
  EXPECT_EQ(positions(session), (std::vector<int64_t>{16, 32, 40, 43, 46}));
  ASSERT_TRUE(session.prefill(prompt(1900)));
  EXPECT_EQ(session.checkpoints().size(), 8u);
  EXPECT_EQ(positions(session).back(), 1946);
  int64_t before = 46;
  for (const int64_t each : positions(session)) {
    EXPECT_LT(each - before, 1000);
    before = each;
  }
}

TEST(Checkpoints, ThatEndTurnsStayLongerThanThoseWithinPrompts) {
  const Mock mock = paged_mock();
  Session session = *mock.model.create_session({.max_context = 4096, .chunk_tokens = 16, .max_checkpoints = 3});
  std::vector<int64_t> ends;
  for (const int64_t length : {500, 200, 300}) {
    ASSERT_TRUE(session.prefill(prompt(length)));
    ends.push_back(session.position());
  }
  EXPECT_EQ(positions(session), ends);
  ASSERT_TRUE(session.prefill(prompt(10)));
  EXPECT_EQ(positions(session), (std::vector<int64_t>{700, 1000, 1010})) << "the nearer the end, the more are kept";
}

TEST(Checkpoints, CanBeTurnedOff) {
  const Mock mock = paged_mock();
  Session session = *mock.model.create_session({.max_context = 100, .max_checkpoints = 0});
  ASSERT_TRUE(session.prefill(prompt(50)));
  ASSERT_TRUE(session.checkpoint());
  EXPECT_TRUE(positions(session).empty());
  const auto refused = session.rewind(40);
  EXPECT_NE(refused.error().message.find("it keeps none"), std::string::npos) << refused.error().message;
  EXPECT_EQ(mock.model.create_session({.max_checkpoints = -1}).error().code, ErrorCode::kInvalidArgument);
}

TEST(Rewind, NamesTheNearestCheckpointAndLeavesTheSession) {
  const Mock mock = paged_mock();
  Session session = *mock.model.create_session({.max_context = 300, .chunk_tokens = 100});
  ASSERT_TRUE(session.prefill(prompt(200)));
  const auto refused = session.rewind(99);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("the nearest is at 100"), std::string::npos) << refused.error().message;
  EXPECT_EQ(session.rewind(201).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(session.rewind(-1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(session.position(), 200);
  EXPECT_EQ(*session.rewind(199), 100);
  EXPECT_EQ(positions(session), std::vector<int64_t>{100});
}

TEST(Rewind, TakesBackATokenThatHasNotRun) {
  const Mock mock = paged_mock();
  Session session = *mock.model.create_session({.max_context = 300, .max_checkpoints = 0});
  ASSERT_TRUE(session.prefill(prompt(20)));
  const std::vector<float> logits = values(session.logits());
  const int32_t token = *session.sample({});
  EXPECT_TRUE(session.logits().empty());
  EXPECT_EQ(*session.rewind(20), 20);
  EXPECT_EQ(values(session.logits()), logits);
  EXPECT_EQ(*session.sample({}), token);
}

TEST(Rewind, CountsTheAnswerAsItWas) {
  const Mock mock = paged_mock();
  const SamplingOptions penalised{.temperature = 0.8, .seed = 3, .frequency_penalty = 1.5};
  Session session = mock.session(), again = mock.session();
  for (Session* each : {&session, &again}) {
    ASSERT_TRUE(each->prefill(prompt(60)));
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(each->decode(7));
  }
  const int32_t wanted = *again.sample(penalised);
  ASSERT_TRUE(session.checkpoint());
  ASSERT_TRUE(session.prefill(prompt(4)));
  EXPECT_EQ(*session.rewind(66), 65);
  EXPECT_EQ(*session.sample(penalised), wanted);
}

}  // namespace
}  // namespace sala::test
