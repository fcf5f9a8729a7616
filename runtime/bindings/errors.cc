#include "errors.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

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
      return "RunError";
  }
  return "SalaError";
}

}  // namespace

void raise(const Error& error) {
  const nanobind::object type = nanobind::module_::import_("sala_export.errors").attr(exception_name(error.code));
  const nanobind::object exception = type(error.message);
  exception.attr("code") = nanobind::str(name_of(error.code).data(), name_of(error.code).size());
  PyErr_SetObject(type.ptr(), exception.ptr());
  throw nanobind::python_error();
}

}  // namespace sala::python
