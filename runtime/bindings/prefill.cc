#include "prefill.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "errors.h"
#include "progress.h"
#include "sala/prefiller.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace sala::python {

namespace {

std::vector<int64_t> indices(const std::optional<IndexArray>& array) {
  return array ? std::vector<int64_t>(array->data(), array->data() + array->size()) : std::vector<int64_t>();
}

std::function<bool(const PrefillProgress&)> progress_to(std::shared_ptr<ProgressReporter> reporter) {
  return [reporter = std::move(reporter)](const PrefillProgress& progress) {
    return (*reporter)(progress.tokens_done, progress.tokens_total, progress.seconds);
  };
}

/// Writes logits into the rows of an array, one after the other.
std::function<void(std::span<const int64_t>, std::span<const float>)> rows_to(std::optional<RowsArray> rows) {
  if (!rows) return {};
  // The prefiller keeps the array, and lets it go when it holds the lock of the interpreter.
  return [data = rows->data(), rows = std::make_shared<RowsArray>(*rows)](std::span<const int64_t>,
                                                                          std::span<const float> logits) mutable {
    data = std::copy(logits.begin(), logits.end(), data);
  };
}

class PyPrefiller {
 public:
  PyPrefiller(nb::object owner, std::optional<int64_t> context_length, std::optional<int64_t> tokens_total,
              nb::object on_progress, const std::optional<IndexArray>& logit_tokens, std::optional<RowsArray> rows)
      : owner_(std::move(owner)),
        session_(nb::cast<PySession&>(owner_)),
        reporter_(std::make_shared<ProgressReporter>(std::move(on_progress))),
        prefiller_(unwrap(Prefiller::create(
            idle(session_), {context_length, progress_to(reporter_), indices(logit_tokens), rows_to(std::move(rows))},
            tokens_total))) {}

  void feed(const TokenArray& token_ids) {
    const Status fed = [&] {
      const Working working(session_);
      return prefiller_.feed(view(token_ids));
    }();
    reporter_->rethrow();
    unwrap(fed);
  }

  nb::object finish() {
    const auto logits = [&] {
      const Working working(session_);
      return prefiller_.finish();
    }();
    reporter_->rethrow();
    return copy(unwrap(logits));
  }

 private:
  nb::object owner_;
  PySession& session_;
  std::shared_ptr<ProgressReporter> reporter_;
  Prefiller prefiller_;
};

}  // namespace

nb::tuple arrays_of(TokenScores scores, int64_t top) {
  const size_t tokens = scores.logprobs.size(), width = static_cast<size_t>(top);
  return nb::make_tuple(array_of(std::move(scores.logprobs), {tokens}),
                        array_of(std::move(scores.top_ids), {tokens, width}),
                        array_of(std::move(scores.top_logprobs), {tokens, width}));
}

nb::tuple score(PySession& session, const TokenArray& token_ids, int64_t top, std::optional<int64_t> context_length,
                nb::object on_progress) {
  const auto reporter = std::make_shared<ProgressReporter>(std::move(on_progress));
  auto scores = [&] {
    const Working working(session);
    return session.session.score(view(token_ids), {top, context_length, progress_to(reporter)});
  }();
  reporter->rethrow();
  return arrays_of(unwrap(std::move(scores)), top);
}

void bind_prefiller(nb::module_& module) {
  nb::class_<PyPrefiller>(module, "Prefiller")
      .def(nb::init<nb::object, std::optional<int64_t>, std::optional<int64_t>, nb::object,
                    const std::optional<IndexArray>&, std::optional<RowsArray>>(),
           "session"_a, nb::kw_only(), "context_length"_a.none(), "tokens_total"_a.none(), "on_progress"_a.none(),
           "logit_tokens"_a.none(), "rows"_a.none())
      .def("feed", &PyPrefiller::feed, "token_ids"_a)
      .def("finish", &PyPrefiller::finish);
}

}  // namespace sala::python
