// What the handles of the C interface hold.

#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "c_api/boundary.h"
#include "sala/model.h"
#include "sala/prefiller.h"
#include "sala/scheduler.h"
#include "sala/session.h"
#include "sala/state_target.h"
#include "sala/stop_strings.h"

namespace sala::c {

/// A session, and whether a call or an answer is at work in it. Kept alive by every handle that refers to it.
struct SharedSession {
  explicit SharedSession(Session created) : session(std::move(created)) {}

  Session session;
  std::atomic<bool> busy = false;
};

/// Marks a session as busy, unless it is already, until the end of its scope.
class AtWork {
 public:
  explicit AtWork(SharedSession& shared) : busy_(shared.busy), is_mine_(!busy_.exchange(true)) {}
  AtWork(const AtWork&) = delete;
  AtWork& operator=(const AtWork&) = delete;
  ~AtWork() {
    if (is_mine_) busy_ = false;
  }

  Status check() const {
    if (is_mine_) return success();
    return error(ErrorCode::kInvalidArgument,
                 "the session is already at work, here or in another thread: use one session a thread",
                 ", and wait until an answer of a scheduler has ended");
  }
  /// Leaves the mark to who works on.
  void leave() { is_mine_ = false; }

 private:
  std::atomic<bool>& busy_;
  bool is_mine_;
};

/// Does `work`, which returns a Status, unless another call is in the session.
template <class Work>
Status exclusively(SharedSession& shared, Work&& work) {
  const AtWork at_work(shared);
  SALA_RETURN_IF_ERROR(at_work.check());
  return work(shared.session);
}

/// The status of an Expected whose value is not needed.
template <class T>
Status without_value(const Expected<T>& outcome) {
  return outcome ? success() : Status(outcome.error());
}

Expected<PrefillOptions> prefill_options_of(const sala_prefill_options* options);
Expected<SamplingOptions> sampling_options_of(const sala_sampling_options* options);
Expected<GenerateOptions> generate_options_of(const sala_generate_options* options,
                                              const sala_sampling_options* sampling);

}  // namespace sala::c

struct sala_model {
  explicit sala_model(sala::Model loaded)
      : model(std::move(loaded)), engine_name(model.engine().name()), precision(model.engine().precision()) {}

  sala::Model model;
  std::string engine_name;  // copies, since the engine's need not end with a zero
  std::string precision;
};

struct sala_session {
  std::shared_ptr<sala::c::SharedSession> shared;
};

struct sala_state_target {
  sala::StateTarget target;
};

struct sala_prefiller {
  std::shared_ptr<sala::c::SharedSession> shared;
  sala::Prefiller prefiller;
};

struct sala_stop_strings {
  sala::StopStrings matcher;
  std::string shown;
};

struct sala_generation {
  std::shared_ptr<sala::c::SharedSession> shared;
  sala::Generation generation;
};

struct sala_scheduler {
  sala::Scheduler scheduler;
};

struct sala_answer {
  sala::Answer answer;  // its request keeps the session
};
