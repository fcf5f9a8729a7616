#include "c_api/handles.h"

namespace sala::c {

namespace {

/// Shows a text, which stays the handle's.
void show(sala_stop_strings& stop_strings, std::string text, const char** shown, size_t* shown_bytes, int32_t* found) {
  stop_strings.shown = std::move(text);
  *shown = stop_strings.shown.data();
  *shown_bytes = stop_strings.shown.size();
  *found = stop_strings.matcher.found() ? 1 : 0;
}

}  // namespace

}  // namespace sala::c

extern "C" {

sala_error* sala_stop_strings_create(const char* const* strings, size_t count, sala_stop_strings** stop_strings) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"stop_strings", stop_strings}}));
    if (count > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"strings", strings}}));
    if (count > sala::StopStrings::kMostStrings) {
      return sala::error(sala::ErrorCode::kInvalidArgument, "count is ", count, ", expected at most ",
                         sala::StopStrings::kMostStrings, " stop strings");
    }
    std::vector<std::string> taken;
    for (size_t i = 0; i < count; ++i) {
      SALA_RETURN_IF_ERROR(sala::c::require({{"a stop string", strings[i]}}));
      taken.emplace_back(strings[i]);
    }
    auto matcher = sala::StopStrings::create(taken);
    if (!matcher) return matcher.error();
    *stop_strings = new sala_stop_strings{*std::move(matcher), {}};
    return sala::success();
  });
}

sala_error* sala_stop_strings_push(sala_stop_strings* stop_strings, const char* text, size_t bytes, const char** shown,
                                   size_t* shown_bytes, int32_t* found) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require(
        {{"stop_strings", stop_strings}, {"shown", shown}, {"shown_bytes", shown_bytes}, {"found", found}}));
    if (bytes > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"text", text}}));
    sala::c::show(*stop_strings, stop_strings->matcher.push({text, bytes}), shown, shown_bytes, found);
    return sala::success();
  });
}

sala_error* sala_stop_strings_finish(sala_stop_strings* stop_strings, const char** shown, size_t* shown_bytes,
                                     int32_t* found) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require(
        {{"stop_strings", stop_strings}, {"shown", shown}, {"shown_bytes", shown_bytes}, {"found", found}}));
    sala::c::show(*stop_strings, stop_strings->matcher.finish(), shown, shown_bytes, found);
    return sala::success();
  });
}

void sala_stop_strings_destroy(sala_stop_strings* stop_strings) { delete stop_strings; }

}  // extern "C"
