#include "base/json_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace sala {

namespace {

const Json kNull;

constexpr int kMostLevels = 64;
constexpr size_t kDigestDigits = 64;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

/// Whether a text is worth parsing. The parser takes a null character for the end of the text, and skips a mark.
bool is_plain(std::string_view text) {
  int levels = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char each = text[i];
    if (each == '\0') return false;
    if (each == '"') in_string = !in_string;
    if (in_string) {
      i += each == '\\' ? 1 : 0;  // what is escaped ends no string
      continue;
    }
    if (each == '[' || each == '{') ++levels;
    if (each == ']' || each == '}') --levels;
    if (levels > kMostLevels) return false;
  }
  return !text.starts_with(kByteOrderMark);
}

std::optional<Json> parse(std::string_view text, const Json::parser_callback_t& take) {
  if (!is_plain(text)) return std::nullopt;
  Json value = Json::parse(text, take, /*allow_exceptions=*/false);
  if (value.is_discarded()) return std::nullopt;
  return value;
}

}  // namespace

std::optional<Json> parse_json(std::string_view text) { return parse(text, nullptr); }

std::optional<Json> parse_unambiguous_json(std::string_view text) {
  std::vector<std::set<std::string>> names;  // of the objects that are open
  bool is_ambiguous = false;
  auto value = parse(text, [&](int, Json::parse_event_t event, const Json& parsed) {
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second)
      is_ambiguous = true;
    return true;
  });
  return is_ambiguous ? std::nullopt : std::move(value);
}

void Field::expect(bool condition, std::string_view what) const {
  if (!condition && problem_->empty()) *problem_ = (path_.empty() ? "" : path_ + ": ") + std::string(what);
}

bool Field::has(std::string_view name) const { return value_->is_object() && value_->contains(name); }

Field Field::operator[](std::string_view name) const {
  std::string path = path_.empty() ? std::string(name) : path_ + "." + std::string(name);
  if (!has(name)) {
    Field missing(kNull, std::move(path), *problem_);
    missing.expect(false, "is missing");
    return missing;
  }
  return Field(*value_->find(name), std::move(path), *problem_);
}

std::vector<Field> Field::elements() const {
  expect(value_->is_array(), "expected an array");
  std::vector<Field> result;
  if (!value_->is_array()) return result;
  for (size_t i = 0; i < value_->size(); ++i) {
    result.emplace_back((*value_)[i], path_ + "[" + std::to_string(i) + "]", *problem_);
  }
  return result;
}

std::vector<std::pair<std::string, Field>> Field::members() const {
  expect(value_->is_object(), "expected an object");
  std::vector<std::pair<std::string, Field>> result;
  if (!value_->is_object()) return result;
  for (const auto& [name, member] : value_->items()) {
    result.emplace_back(name, Field(member, path_.empty() ? name : path_ + "." + name, *problem_));
  }
  return result;
}

void Field::allow_only(std::initializer_list<std::string_view> names) const {
  for (const auto& [name, member] : members()) {
    member.expect(std::find(names.begin(), names.end(), name) != names.end(), "is not a field of this schema");
  }
}

int64_t Field::integer(int64_t least, int64_t most) const {
  const bool fits = value_->is_number_integer() &&
                    !(value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  const int64_t result = fits ? value_->get<int64_t>() : 0;
  expect(fits && result >= least,
         least == INT64_MIN ? "expected an integer" : "expected an integer of at least " + std::to_string(least));
  expect(result <= most, "expected an integer of at most " + std::to_string(most));
  return std::clamp(result, least, most);
}

double Field::number() const {
  expect(value_->is_number(), "expected a number");
  return value_->is_number() ? value_->get<double>() : 0.0;
}

float Field::fp32() const {
  const double value = number();
  const bool fits = std::abs(value) <= std::numeric_limits<float>::max();
  const float result = fits ? static_cast<float>(value) : 0.0f;
  expect(fits && static_cast<double>(result) == value, "is not an fp32 number");
  return result;
}

bool Field::flag() const {
  expect(value_->is_boolean(), "expected true or false");
  return value_->is_boolean() && value_->get<bool>();
}

std::string Field::string() const {
  expect(value_->is_string(), "expected a string");
  return value_->is_string() ? value_->get<std::string>() : std::string();
}

std::string Field::sha256() const {
  const std::string text = string();
  expect(text.size() == kDigestDigits && text.find_first_not_of("0123456789abcdef") == std::string::npos,
         "expected a SHA-256 of 64 digits, 0-9 and a-f");
  return text;
}

}  // namespace sala
