// Prompts that Python gives: piece by piece to a prefiller, or whole to be scored.

#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>

#include "arrays.h"
#include "py_session.h"
#include "sala/session.h"

namespace sala::python {

/// Log-probabilities [tokens], the likeliest tokens [tokens, top] and theirs.
nanobind::tuple arrays_of(TokenScores scores, int64_t top);

/// The arrays of a text's scores.
nanobind::tuple score(PySession& session, const TokenArray& token_ids, int64_t top,
                      std::optional<int64_t> context_length, nanobind::object on_progress);

void bind_prefiller(nanobind::module_& module);

}  // namespace sala::python
