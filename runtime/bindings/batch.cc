#include "batch.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "py_session.h"
#include "sala/batch.h"
#include "sala/model.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace sala::python {

namespace {

/// Sessions in a batch, each marked as busy until its answer has ended, and whether a thread is in the batch.
class PyBatch {
  // Before what calls it, for what `work` returns follows from its call.
  BatchGeneration& open() {
    if (is_working_) raise_busy();
    if (!batch_) raise({ErrorCode::kInvalidArgument, "the batch is closed: begin another"});
    return *batch_;
  }

  template <class Work>
  auto work(Work&& call) {
    struct Mark {
      std::atomic<bool>& is_working;
      explicit Mark(std::atomic<bool>& mark) : is_working(mark) { is_working = true; }
      ~Mark() { is_working = false; }
    } const mark(is_working_);
    const Unlocked unlocked;
    return call();
  }

 public:
  PyBatch(const Model& model, std::vector<nb::object> owners, const std::vector<GenerateOptions>& options)
      : owners_(std::move(owners)) {
    std::vector<Session*> sessions;
    for (const nb::object& owner : owners_) {
      PySession& session = nb::cast<PySession&>(owner);
      busy_.push_back(std::make_unique<Busy>(session));
      sessions.push_back(&session.session);
    }
    auto made = [&] {
      const Unlocked unlocked;
      return model.generate_batch(sessions, options);
    }();
    batch_.emplace(unwrap(std::move(made)));
  }

  /// The next token of each session. Nothing when all have ended.
  std::optional<std::vector<std::optional<int32_t>>> next() {
    BatchGeneration& batch = open();
    if (batch.has_finished()) return std::nullopt;
    auto tokens = work([&] { return batch.next(); });
    for (size_t i = 0; i < owners_.size(); ++i) {
      if (batch.finish_reason(i) != FinishReason::kNone || !batch.status(i)) busy_[i].reset();
    }
    return unwrap(std::move(tokens));
  }

  void end(size_t session) {
    BatchGeneration& batch = open();
    const Status ended = work([&] { return batch.end(session); });
    busy_.at(session).reset();
    unwrap(ended);
  }

  std::optional<std::string_view> finish_reason(size_t session) { return told(open().finish_reason(session)); }

  ToldLogprobs logprobs(size_t session) { return told(open().logprobs(session)); }

  /// Raises the error that ended the answer of a session, if one did.
  void check(size_t session) { unwrap(open().status(session)); }

  /// Lets all sessions go.
  void close() {
    if (is_working_) raise_busy();
    batch_.reset();
    busy_.clear();
  }

 private:
  std::vector<nb::object> owners_;
  std::vector<std::unique_ptr<Busy>> busy_;
  std::optional<BatchGeneration> batch_;  // goes before what it uses
  std::atomic<bool> is_working_ = false;
};

}  // namespace

void bind_batch(nb::module_& module) {
  nb::class_<PyBatch>(module, "BatchGeneration")
      .def(nb::init<const Model&, std::vector<nb::object>, const std::vector<GenerateOptions>&>(), "model"_a,
           "sessions"_a, "options"_a)
      .def("next", &PyBatch::next)
      .def("end", &PyBatch::end, "session"_a)
      .def("finish_reason", &PyBatch::finish_reason, "session"_a)
      .def("logprobs", &PyBatch::logprobs, "session"_a)
      .def("check", &PyBatch::check, "session"_a)
      .def("close", &PyBatch::close);
}

}  // namespace sala::python
