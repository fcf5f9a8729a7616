#include "errors.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

namespace sala::python {

namespace {

const char* exception_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kEmptyPrompt:
    case ErrorCode::kTokenOutOfRange:
    case ErrorCode::kContextExceeded:
    case ErrorCode::kNoLogits:
    case ErrorCode::kStopped:
      return "SessionError";
    case ErrorCode::kBundleMissing:
    case ErrorCode::kBundleDamaged:
    case ErrorCode::kBundleSchema:
    case ErrorCode::kWeightsMissing:
    case ErrorCode::kWeightsUnsuitable:
      return "BundleError";
    case ErrorCode::kStateUnreadable:
    case ErrorCode::kStateForeign:
    case ErrorCode::kStateDamaged:
    case ErrorCode::kStateVersion:
    case ErrorCode::kStateModel:
    case ErrorCode::kStatePrecision:
    case ErrorCode::kStateUnwritable:
      return "StateError";
    case ErrorCode::kLibraryMissing:
    case ErrorCode::kLibraryUnusable:
    case ErrorCode::kDeviceMissing:
    case ErrorCode::kDeviceUnsuitable:
      return "UnsupportedError";
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kEngineFailed:
    case ErrorCode::kSessionPoisoned:
    case ErrorCode::kBusy:
      return "RunError";
  }
  return "SalaError";
}

/// The exception that became a status on this thread. Not an object of nanobind: a thread may end without the GIL.
struct Cause {
  PyObject* exception = nullptr;
  std::string message;
};
thread_local Cause last_cause;

nanobind::object error_class(const char* name) { return nanobind::module_::import_("sala_export.errors").attr(name); }

bool is_instance(const nanobind::object& exception, nanobind::handle type) {
  return PyErr_GivenExceptionMatches(exception.ptr(), type.ptr()) != 0;
}

}  // namespace

bool has_cause(const Error& error) { return last_cause.exception != nullptr && error.message == last_cause.message; }

nanobind::object take_cause(const Error& error) {
  const nanobind::object exception = nanobind::steal(std::exchange(last_cause.exception, nullptr));
  return error.message == last_cause.message ? exception : nanobind::object();
}

Error from_python(const nanobind::python_error& raised) {
  const nanobind::object exception = nanobind::borrow(raised.value());
  // `printable`, because text of Python with half a surrogate pair has no UTF-8.
  const nanobind::object printable = nanobind::module_::import_("sala_export.errors").attr("printable");
  const nanobind::str text(printable(nanobind::str(exception)));
  const bool is_own = is_instance(exception, error_class("SalaError"));
  const bool is_memory = is_instance(exception, PyExc_MemoryError);
  std::string message = text.c_str();
  if (!is_own && !is_memory) {
    message = std::string(nanobind::str(exception.type().attr("__name__")).c_str()) + ": " + message;
  }
  const ErrorCode code = is_memory                                             ? ErrorCode::kOutOfMemory
                         : is_instance(exception, error_class("SessionError")) ? ErrorCode::kInvalidArgument
                                                                               : ErrorCode::kEngineFailed;
  Py_XDECREF(std::exchange(last_cause.exception, nanobind::object(exception).release().ptr()));
  Error made = error(code, message);
  last_cause.message = made.message;
  return made;
}

void raise(const Error& error) { raise(error, take_cause(error)); }

void raise(const Error& error, const nanobind::object& cause) {
  if (cause.is_valid() && (is_instance(cause, error_class("SalaError")) || !is_instance(cause, PyExc_Exception))) {
    PyErr_SetObject(cause.type().ptr(), cause.ptr());
    throw nanobind::python_error();
  }
  const nanobind::object type = error_class(exception_name(error.code));
  const nanobind::object exception = type(error.message);
  if (cause.is_valid()) exception.attr("__cause__") = cause;
  exception.attr("code") = nanobind::str(name_of(error.code).data(), name_of(error.code).size());
  PyErr_SetObject(type.ptr(), exception.ptr());
  throw nanobind::python_error();
}

}  // namespace sala::python
