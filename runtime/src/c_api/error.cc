#include <algorithm>

#include "c_api/boundary.h"

struct sala_error {
  int32_t code;
  std::string name;
  std::string message;
};

namespace sala::c {

namespace {

// The enumerators of both languages are the same.
#define SALA_SAME_CODE(c_name, cpp_name) static_assert(c_name == static_cast<int32_t>(ErrorCode::cpp_name))
SALA_SAME_CODE(SALA_ERROR_INVALID_ARGUMENT, kInvalidArgument);
SALA_SAME_CODE(SALA_ERROR_EMPTY_PROMPT, kEmptyPrompt);
SALA_SAME_CODE(SALA_ERROR_TOKEN_OUT_OF_RANGE, kTokenOutOfRange);
SALA_SAME_CODE(SALA_ERROR_CONTEXT_EXCEEDED, kContextExceeded);
SALA_SAME_CODE(SALA_ERROR_NO_LOGITS, kNoLogits);
SALA_SAME_CODE(SALA_ERROR_BUNDLE_MISSING, kBundleMissing);
SALA_SAME_CODE(SALA_ERROR_BUNDLE_DAMAGED, kBundleDamaged);
SALA_SAME_CODE(SALA_ERROR_BUNDLE_SCHEMA, kBundleSchema);
SALA_SAME_CODE(SALA_ERROR_WEIGHTS_MISSING, kWeightsMissing);
SALA_SAME_CODE(SALA_ERROR_WEIGHTS_UNSUITABLE, kWeightsUnsuitable);
SALA_SAME_CODE(SALA_ERROR_STATE_UNREADABLE, kStateUnreadable);
SALA_SAME_CODE(SALA_ERROR_STATE_FOREIGN, kStateForeign);
SALA_SAME_CODE(SALA_ERROR_STATE_DAMAGED, kStateDamaged);
SALA_SAME_CODE(SALA_ERROR_STATE_VERSION, kStateVersion);
SALA_SAME_CODE(SALA_ERROR_STATE_MODEL, kStateModel);
SALA_SAME_CODE(SALA_ERROR_STATE_PRECISION, kStatePrecision);
SALA_SAME_CODE(SALA_ERROR_STATE_UNWRITABLE, kStateUnwritable);
SALA_SAME_CODE(SALA_ERROR_LIBRARY_MISSING, kLibraryMissing);
SALA_SAME_CODE(SALA_ERROR_LIBRARY_UNUSABLE, kLibraryUnusable);
SALA_SAME_CODE(SALA_ERROR_OUT_OF_MEMORY, kOutOfMemory);
SALA_SAME_CODE(SALA_ERROR_DEVICE_MISSING, kDeviceMissing);
SALA_SAME_CODE(SALA_ERROR_DEVICE_UNSUITABLE, kDeviceUnsuitable);
SALA_SAME_CODE(SALA_ERROR_ENGINE_FAILED, kEngineFailed);
SALA_SAME_CODE(SALA_ERROR_SESSION_POISONED, kSessionPoisoned);
SALA_SAME_CODE(SALA_ERROR_STOPPED, kStopped);
SALA_SAME_CODE(SALA_ERROR_BUSY, kBusy);
#undef SALA_SAME_CODE

// Short enough for the strings to hold them in place: nothing is allocated.
sala_error out_of_memory{SALA_ERROR_OUT_OF_MEMORY, "OutOfMemory", "no memory left"};

}  // namespace

sala_error* give(int32_t code, const char* name, std::string message) {
  try {
    return new sala_error{code, name, std::move(message)};
  } catch (const std::bad_alloc&) {
    return &out_of_memory;
  }
}

sala_error* give(const Error& error) {
  try {
    return give(static_cast<int32_t>(error.code), std::string(name_of(error.code)).c_str(), error.message);
  } catch (const std::bad_alloc&) {
    return &out_of_memory;
  }
}

sala_error* give_out_of_memory() noexcept { return &out_of_memory; }

Status require(std::initializer_list<std::pair<const char*, const void*>> arguments) {
  for (const auto& [name, pointer] : arguments) {
    if (pointer == nullptr) return error(ErrorCode::kInvalidArgument, name, " is NULL");
  }
  return success();
}

bool all_zero(const void* bytes, size_t count) {
  const auto* begin = static_cast<const unsigned char*>(bytes);
  return std::all_of(begin, begin + count, [](unsigned char byte) { return byte == 0; });
}

}  // namespace sala::c

extern "C" {

int32_t sala_abi_version(void) { return SALA_ABI_VERSION; }

const char* sala_version(void) { return SALA_VERSION; }

int32_t sala_error_code(const sala_error* error) { return error != nullptr ? error->code : 0; }

const char* sala_error_name(const sala_error* error) { return error != nullptr ? error->name.c_str() : nullptr; }

const char* sala_error_message(const sala_error* error) { return error != nullptr ? error->message.c_str() : nullptr; }

void sala_error_destroy(sala_error* error) {
  if (error != &sala::c::out_of_memory) delete error;
}

}  // extern "C"
