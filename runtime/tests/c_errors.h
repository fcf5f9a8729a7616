// What an error of the C interface says.

#pragma once

#include <string>

#include "sala.h"

namespace sala::test {

/// The code of an error, which is destroyed; 0 for none.
inline int32_t code_of(sala_error* error) {
  const int32_t code = sala_error_code(error);
  sala_error_destroy(error);
  return code;
}

/// The message of an error, which is destroyed; empty for none.
inline std::string message_of(sala_error* error) {
  const std::string message = error != nullptr ? sala_error_message(error) : "";
  sala_error_destroy(error);
  return message;
}

}  // namespace sala::test
