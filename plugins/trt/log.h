// Messages to whoever called TensorRT, and the guard that keeps exceptions on this side of its API.

#pragma once

#include <NvInferRuntime.h>

#include <exception>

#include "common/result.h"

namespace sala::trt {

/// Where later messages go; null for standard error. TensorRT owns the finder.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

void log_error(const char* message) noexcept;

/// TensorRT's return code: 0, or 1 after logging the error.
template <class T>
int32_t return_code(const Expected<T>& outcome) noexcept {
  if (outcome) return 0;
  log_error(outcome.error().message.c_str());
  return 1;
}

/// Calls `body`; what it throws (memory exhausted, in practice) is logged, and `on_exception` returned.
template <class Result, class Body>
Result guarded(Result on_exception, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& exception) {
    log_error(exception.what());  // allocates nothing: memory may be what is missing
    return on_exception;
  }
}

}  // namespace sala::trt
