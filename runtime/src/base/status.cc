#include "sala/status.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace sala {

namespace {

struct Character {
  char32_t code;
  size_t bytes;  // 0: what begins here is no UTF-8
};

struct Form {
  unsigned char mask, lead;  // of the first byte
  size_t bytes;
  char32_t least;  // a smaller code has a shorter form
};

constexpr std::array<Form, 4> kForms{
    {{0x80, 0x00, 1, 0}, {0xe0, 0xc0, 2, 0x80}, {0xf0, 0xe0, 3, 0x800}, {0xf8, 0xf0, 4, 0x10000}}};

// The first character of a text that is not empty.
Character first_of(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (const Form& form : kForms) {
    if ((byte(0) & form.mask) != form.lead) continue;
    if (text.size() < form.bytes) return {0, 0};
    char32_t code = byte(0) & static_cast<unsigned char>(~form.mask);
    for (size_t i = 1; i < form.bytes; ++i) {
      if ((byte(i) & 0xc0) != 0x80) return {0, 0};
      code = (code << 6) | (byte(i) & 0x3f);
    }
    const bool surrogate = code >= 0xd800 && code <= 0xdfff;
    return {code, code < form.least || code > 0x10ffff || surrogate ? 0 : form.bytes};
  }
  return {0, 0};
}

// sala_export/errors.py has the same table.
bool is_printable(char32_t code) {
  constexpr std::array<std::array<char32_t, 2>, 6> kRefused{
      {{0, 0x1f}, {0x7f, 0x9f}, {0x61c, 0x61c}, {0x200e, 0x200f}, {0x2028, 0x202e}, {0x2066, 0x2069}}};
  return std::none_of(kRefused.begin(), kRefused.end(),
                      [&](auto range) { return code >= range[0] && code <= range[1]; });
}

void append_escape(std::string& text, char32_t code) {
  if (code == '\n' || code == '\r' || code == '\t') {
    text += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
    return;
  }
  text += code < 0x100 ? "\\x" : "\\u";
  for (int shift = code < 0x100 ? 4 : 12; shift >= 0; shift -= 4) text += "0123456789abcdef"[(code >> shift) & 0xf];
}

}  // namespace

std::string printable(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Character first = first_of(text);
    const size_t bytes = std::max<size_t>(first.bytes, 1);
    if (first.bytes == 0) {
      append_escape(result, static_cast<unsigned char>(text[0]));
    } else if (is_printable(first.code)) {
      result += text.substr(0, bytes);
    } else {
      append_escape(result, first.code);
    }
    text.remove_prefix(bytes);
  }
  return result;
}

std::string shortened(std::string_view text) {
  constexpr size_t kLongest = 4000;
  if (text.size() <= kLongest) return std::string(text);
  const auto at_a_character = [&](size_t i) {
    const auto continues = [&](size_t j) { return (static_cast<unsigned char>(text[j]) & 0xc0) == 0x80; };
    for (size_t start = i; start + 4 > i; --start) {
      if (!continues(start)) return start;
    }
    return i;  // no UTF-8
  };
  const size_t last = at_a_character(text.size() - kLongest / 4);
  return std::string(text.substr(0, at_a_character(kLongest / 2))) + " ... " + std::string(text.substr(last));
}

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
    case ErrorCode::kBusy:
      return "Busy";
  }
  return "Unknown";
}

}  // namespace sala
