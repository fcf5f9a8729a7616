#include "base/json_fields.h"

#include <algorithm>

namespace sala {

namespace {

const Json kNull;

}  // namespace

std::optional<Json> parse_json(std::string_view text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return std::nullopt;
  return value;
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

int64_t Field::integer(int64_t least) const {
  const bool fits = value_->is_number_integer() &&
                    !(value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  const int64_t result = fits ? value_->get<int64_t>() : 0;
  expect(fits && result >= least,
         least == INT64_MIN ? "expected an integer" : "expected an integer of at least " + std::to_string(least));
  return std::max(result, least);
}

double Field::number() const {
  expect(value_->is_number(), "expected a number");
  return value_->is_number() ? value_->get<double>() : 0.0;
}

bool Field::flag() const {
  expect(value_->is_boolean(), "expected true or false");
  return value_->is_boolean() && value_->get<bool>();
}

std::string Field::string() const {
  expect(value_->is_string(), "expected a string");
  return value_->is_string() ? value_->get<std::string>() : std::string();
}

}  // namespace sala
