// How requests end where nobody waits for them, and what memory they take.

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "requests.h"

namespace sala::test {
namespace {

int status_of(const std::function<bool()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    alarm(60);
    _exit(work() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

TEST(SchedulerEnd, OfTheParentIsRefusedInAChild) {
  const Mock mock = paged_mock();
  std::optional<Scheduler> scheduler = *Scheduler::create(mock.model);
  Session other = mock.session();
  std::optional<Gate> gate(std::in_place, mock, *scheduler);  // its thread holds no lock of the process meanwhile
  const int status = status_of([&] {
    const auto refused = scheduler->submit(other, prompt(3));
    const bool is_right = !refused && refused.error().code == ErrorCode::kEngineFailed && !gate->answer().next();
    gate.reset();
    scheduler.reset();
    return is_right;
  });
  EXPECT_EQ(status, 0);
  gate->open();
  EXPECT_EQ(all(gate->answer()).size(), 1u);
}

TEST(SchedulerEnd, ChildLetsGoOfWhatItsParentWaitsFor) {
  const Mock mock = paged_mock();
  std::optional<Scheduler> scheduler = *Scheduler::create(mock.model);
  Session session = mock.session();
  std::optional<Answer> ended = *scheduler->submit(session, prompt(3), answer_of(1));
  all(*ended);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // until its thread waits for requests
  EXPECT_EQ(status_of([&] {
              ended.reset();
              scheduler.reset();
              return true;
            }),
            0);
  std::optional<Gate> gate(std::in_place, mock, *scheduler);
  Session waited = mock.session();
  std::optional<Answer> answer = *scheduler->submit(waited, prompt(3), answer_of(1));
  std::thread waiter([&] { all(*answer); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // until it waits for the answer
  EXPECT_EQ(status_of([&] {
              static_cast<void>(new std::optional<Answer>(std::move(answer)));  // used by the waiter
              scheduler.reset();
              return true;
            }),
            0);
  EXPECT_EQ(status_of([&] {
              answer.reset();
              return true;
            }),
            0);
  gate->open();
  waiter.join();
}

TEST(SchedulerEnd, CanComeInItsOwnThread) {
  for (const bool is_scheduler_first : {false, true}) {
    const Mock mock = paged_mock();
    std::optional<Scheduler> scheduler = *Scheduler::create(mock.model);
    Session first = mock.session(), second = mock.session(), third = mock.session();
    // The end of one answer lets go of another.
    auto held = std::make_shared<std::optional<Answer>>();
    RequestOptions options = answer_of(4000);
    options.on_token = [held](int32_t) { return true; };
    std::optional<Answer> other = *scheduler->submit(second, prompt(30), std::move(options));
    *held = *scheduler->submit(third, prompt(30), answer_of(4000));
    held.reset();
    ASSERT_TRUE(other->next());
    options = answer_of(4000);
    // As a garbage collector does that happens to run here.
    options.on_token = [&](int32_t) {
      if (is_scheduler_first) scheduler.reset();
      other.reset();
      scheduler.reset();
      return true;
    };
    Answer answer = *scheduler->submit(first, prompt(30), std::move(options));
    answer.wait();
    EXPECT_EQ(answer.finish_reason(), FinishReason::kCancelled);
    EXPECT_EQ(all(answer).size(), 1u);
    for (Session* session : {&first, &second, &third}) EXPECT_TRUE(session->prefill(prompt(3)));
  }
}

TEST(SchedulerEnd, RefusesRequestsFromThen) {
  const Mock mock = paged_mock();
  std::optional<Scheduler> scheduler = *Scheduler::create(mock.model);
  Session session = mock.session(), later = mock.session();
  std::optional<ErrorCode> refused;
  RequestOptions options = answer_of(4000);
  options.on_end = [&, submitting = &*scheduler](const Status&) {
    const auto answer = submitting->submit(later, prompt(3));
    if (!answer) refused = answer.error().code;
  };
  Answer answer = *scheduler->submit(session, prompt(3), std::move(options));
  ASSERT_TRUE(answer.next());
  scheduler.reset();
  EXPECT_EQ(refused, ErrorCode::kBusy);
}

TEST(SchedulerEnd, GivesBackTheMemoryOfItsBatch) {
  const Mock mock = paged_mock();
  Memory& memory = mock.model.engine().memory();
  std::optional<Scheduler> scheduler = *Scheduler::create(mock.model);
  std::vector<Session> sessions;
  std::vector<Answer> answers;
  for (int i = 0; i < 3; ++i) sessions.push_back(mock.session());
  Gate gate(mock, *scheduler);
  for (Session& session : sessions) answers.push_back(*scheduler->submit(session, prompt(30), answer_of(20)));
  gate.open();  // so that none has ended before another begins
  for (Answer& answer : answers) all(answer);
  const int64_t before = memory.used_bytes();
  scheduler.reset();
  EXPECT_EQ(before - memory.used_bytes(), memory.page_bytes()) << "the states of eight slots, while answers live";
}

TEST(SchedulerMemory, CountsWhatForksWillCopy) {
  const Mock mock = paged_mock();
  Memory& memory = mock.model.engine().memory();
  Session book = *mock.model.create_session({.max_context = 1 << 20, .chunk_tokens = 2048});
  ASSERT_TRUE(book.prefill(prompt(50'000)));
  const auto run = [&](int64_t limit) {
    auto scheduler = Scheduler::create(mock.model, {.max_cache_bytes = limit});
    Session fork = *book.fork();
    const int64_t before = memory.used_bytes();
    Answer answer = *scheduler->submit(fork, prompt(5), answer_of(3));
    const auto token = answer.next();
    answer.wait();
    return std::pair(static_cast<bool>(token), memory.used_bytes() - before);
  };
  const auto [is_done, taken] = run(INT64_MAX);
  ASSERT_TRUE(is_done);
  EXPECT_GE(taken, 5 * memory.page_bytes()) << "the state, and the last page of two heads of keys and of values";
  EXPECT_TRUE(run(memory.used_bytes() + taken).first);
  EXPECT_FALSE(run(memory.used_bytes() + taken - 1).first);
}

TEST(SchedulerMemory, AnswersGoOnAloneWhereThereIsNoneForABatch) {
  const Mock mock = paged_mock(), reference;
  mock.engine->log_->no_room_for = 2;
  auto scheduler = Scheduler::create(mock.model);
  std::vector<Session> sessions;
  for (int i = 0; i < 2; ++i) sessions.push_back(mock.session());
  std::vector<Answer> answers;
  for (Session& session : sessions) answers.push_back(*scheduler->submit(session, prompt(30), answer_of(50)));
  Session same = reference.session();
  ASSERT_TRUE(same.prefill(prompt(30)));
  auto alone = same.generate(answer_of(50).generate);
  const auto expected = all(*alone);
  for (Answer& answer : answers) EXPECT_EQ(all(answer), expected);
  for (const Step& step : mock.steps()) EXPECT_EQ(step.batch, 1);
}

TEST(SchedulerMemory, LetsNobodyWaitBehindWhoWaitsForItIfNoneMay) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(
      mock.model, {.max_waiting = 1, .max_cache_bytes = mock.model.cache_bytes() + (int64_t{3} << 20)});
  std::vector<Session> sessions;
  for (int i = 0; i < 3; ++i)
    sessions.push_back(*mock.model.create_session({.max_context = 1 << 20, .chunk_tokens = {}}));
  Answer running = *scheduler->submit(sessions[0], prompt(3), answer_of(30'000));
  ASSERT_TRUE(running.next());
  Answer waiting = *scheduler->submit(sessions[1], prompt(3), answer_of(30'000));
  ASSERT_TRUE(running.next());
  while (waiting.progress().stage == RequestStage::kWaiting && running.next()) {
    const auto refused = scheduler->submit(sessions[2], prompt(3), answer_of(1));
    if (refused) continue;  // its thread has not looked at the second one
    EXPECT_EQ(refused.error().code, ErrorCode::kBusy);
    break;
  }
  EXPECT_EQ(waiting.progress().stage, RequestStage::kWaiting);
}

TEST(SchedulerEnd, WaitsOfAnyLengthReturn) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Session session = mock.session();
  Answer answer = *scheduler->submit(session, prompt(3), answer_of(1));
  EXPECT_TRUE(answer.wait_for(std::chrono::duration<double>(1e300)));
  all(answer);
  for (const double seconds : {-1.0, 0.0, std::nan("")}) {
    EXPECT_TRUE(answer.wait_for(std::chrono::duration<double>(seconds)));
  }
}

}  // namespace
}  // namespace sala::test
