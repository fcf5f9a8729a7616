// A constraint of an answer that is written in Python.

#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "arrays.h"
#include "errors.h"
#include "interpreter_lock.h"
#include "sala/session.h"
#include "sala/token_constraint.h"

namespace sala::python {

/// An object with the methods `allowed` and `take`. What they raise is kept here: it must not travel through the core.
class PyConstraint final : public TokenConstraint {
 public:
  explicit PyConstraint(nanobind::object constraint) : constraint_(std::move(constraint)) {}
  PyConstraint(const PyConstraint&) = delete;
  PyConstraint& operator=(const PyConstraint&) = delete;
  ~PyConstraint() override {
    const Locked locked;
    constraint_.reset();
    words_.reset();
    raised_.reset();
  }

  Expected<std::span<const uint32_t>> allowed() override {
    return called<std::span<const uint32_t>>([this] { return words_of(constraint_.attr("allowed")()); });
  }

  Status take(int32_t token) override {
    return called<std::monostate>([&] {
      constraint_.attr("take")(token);
      return std::monostate{};
    });
  }

  /// Throws what a method raised and nobody has been told. The interpreter's lock must be held.
  void rethrow() {
    if (!raised_) return;
    nanobind::python_error raised = std::move(*raised_);
    raised_.reset();
    throw raised;
  }

 private:
  template <class Value, class Call>
  Expected<Value> called(const Call& call) {
    const Locked locked;
    try {
      return until_the_interpreter_ends(call);
    } catch (nanobind::python_error& raised) {
      raised_.emplace(std::move(raised));
      return error(ErrorCode::kInvalidArgument, "the constraint of the answer raised an exception");
    }
  }

  /// The words of an array, which stays here for as long as they are looked at.
  std::span<const uint32_t> words_of(const nanobind::object& given) {
    words_.reset();
    if (given.is_none()) return {};
    WordArray words;
    if (!nanobind::try_cast(given, words, false)) {
      const nanobind::str type(given.type().attr("__name__"));
      raise(error(ErrorCode::kInvalidArgument, "allowed() of the constraint returned a value of type ", type.c_str(),
                  ", expected an array of uint32 [words], or None"));
    }
    static constexpr uint32_t kNone = 0;
    words_.emplace(std::move(words));
    if (words_->size() == 0) return {&kNone, 1};
    return {words_->data(), words_->size()};
  }

  nanobind::object constraint_;
  std::optional<WordArray> words_;
  std::optional<nanobind::python_error> raised_;
};

/// What Python gave as a constraint: None for none.
inline std::shared_ptr<TokenConstraint> constraint_of(nanobind::object given) {
  return given.is_none() ? nullptr : std::make_shared<PyConstraint>(std::move(given));
}

/// Throws what the constraint of these options raised, if it did.
inline void rethrow_of(const std::shared_ptr<TokenConstraint>& constraint) {
  if (constraint != nullptr) static_cast<PyConstraint&>(*constraint).rethrow();
}

}  // namespace sala::python
