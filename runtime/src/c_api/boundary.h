// What every function of the C interface does: arguments in, statuses and exceptions out as error objects.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

#include "sala.h"
#include "sala/status.h"

namespace sala::c {

/// An error object for the caller. Without memory for one, the object that needs none.
sala_error* give(int32_t code, const char* name, std::string message);
sala_error* give(const Error& error);
sala_error* give_out_of_memory() noexcept;

/// Runs a function's body, which returns a Status.
template <class Body>
sala_error* guarded(Body&& body) noexcept {
  try {
    const Status outcome = body();
    return outcome ? nullptr : give(outcome.error());
  } catch (const std::bad_alloc&) {
    return give_out_of_memory();
  } catch (const std::exception& thrown) {
    return give(SALA_ERROR_INTERNAL, "Internal", printable(thrown.what()));
  } catch (...) {  // a progress callback written in C++ can throw anything
    return give(SALA_ERROR_INTERNAL, "Internal",
                "an exception of an unknown type was thrown: catch it in the callback");
  }
}

/// kInvalidArgument naming the first null pointer.
Status require(std::initializer_list<std::pair<const char*, const void*>> arguments);

/// Whether `count` bytes are zero.
bool all_zero(const void* bytes, size_t count);

/// The options that a caller gave, whose struct may be of an older or a newer minor version than this library's.
///
/// `first_size` is that of the struct in version 1.0. kInvalidArgument for a size that no version had, and for a member
/// that this library does not know and that is not zero.
template <class Options>
Expected<Options> options_of(const Options* given, size_t first_size, Options defaults) {
  if (given == nullptr) return defaults;
  const size_t size = given->struct_size;
  if (size < first_size) {
    return error(ErrorCode::kInvalidArgument, "struct_size is ", size, ", expected at least ", first_size,
                 ": begin with the SALA_..._INIT of the options");
  }
  if (size > sizeof(Options) &&
      !all_zero(reinterpret_cast<const char*>(given) + sizeof(Options), size - sizeof(Options))) {
    return error(ErrorCode::kInvalidArgument, "options of ", size, " bytes set a member that this library, ABI ",
                 SALA_ABI_MAJOR, ".", SALA_ABI_MINOR, ", does not know: update libsala");
  }
  std::memcpy(&defaults, given, std::min(size, sizeof(Options)));
  return defaults;
}

}  // namespace sala::c
