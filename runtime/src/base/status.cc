#include "sala/status.h"

namespace sala {

std::string_view name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "InvalidArgument";
    case ErrorCode::kEmptyPrompt:
      return "EmptyPrompt";
    case ErrorCode::kTokenOutOfRange:
      return "TokenOutOfRange";
    case ErrorCode::kContextExceeded:
      return "ContextExceeded";
    case ErrorCode::kNoLogits:
      return "NoLogits";
    case ErrorCode::kBundleMissing:
      return "BundleMissing";
    case ErrorCode::kBundleDamaged:
      return "BundleDamaged";
    case ErrorCode::kBundleSchema:
      return "BundleSchema";
    case ErrorCode::kWeightsMissing:
      return "WeightsMissing";
    case ErrorCode::kWeightsUnsuitable:
      return "WeightsUnsuitable";
    case ErrorCode::kStateUnreadable:
      return "StateUnreadable";
    case ErrorCode::kStateForeign:
      return "StateForeign";
    case ErrorCode::kStateDamaged:
      return "StateDamaged";
    case ErrorCode::kStateVersion:
      return "StateVersion";
    case ErrorCode::kStateModel:
      return "StateModel";
    case ErrorCode::kStatePrecision:
      return "StatePrecision";
    case ErrorCode::kStateUnwritable:
      return "StateUnwritable";
    case ErrorCode::kLibraryMissing:
      return "LibraryMissing";
    case ErrorCode::kLibraryUnusable:
      return "LibraryUnusable";
    case ErrorCode::kOutOfMemory:
      return "OutOfMemory";
    case ErrorCode::kDeviceMissing:
      return "DeviceMissing";
    case ErrorCode::kDeviceUnsuitable:
      return "DeviceUnsuitable";
    case ErrorCode::kEngineFailed:
      return "EngineFailed";
    case ErrorCode::kSessionPoisoned:
      return "SessionPoisoned";
    case ErrorCode::kStopped:
      return "Stopped";
  }
  return "Unknown";
}

}  // namespace sala
