// Reading typed fields of JSON objects. The first wrong field is remembered, and reading goes on with empty values, so
// that a parser is a plain list of fields with one check at its end.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sala {

using Json = nlohmann::json;

/// The document, or nothing if the text is not JSON in UTF-8, begins with a byte order mark, or is nested more than 64
/// levels deep, which is looked at before anything is built of it.
std::optional<Json> parse_json(std::string_view text);

/// The same; nothing if an object has two members of one name, too.
std::optional<Json> parse_unambiguous_json(std::string_view text);

/// A JSON value with its path from the root, for messages.
class Field {
 public:
  /// `problem` takes the first finding and must start empty; all three arguments outlive the field.
  Field(const Json& value, std::string path, std::string& problem)
      : value_(&value), path_(std::move(path)), problem_(&problem) {}

  /// A member of this object. A missing one is a problem.
  Field operator[](std::string_view name) const;
  bool has(std::string_view name) const;
  /// The elements of this array.
  std::vector<Field> elements() const;
  /// The members of this object, by name.
  std::vector<std::pair<std::string, Field>> members() const;
  /// Every member that is not named is a problem.
  void allow_only(std::initializer_list<std::string_view> names) const;

  /// From `least` to `most`; `least` where the value is something else.
  int64_t integer(int64_t least = INT64_MIN, int64_t most = INT64_MAX) const;
  double number() const;
  /// Exactly an fp32 number.
  float fp32() const;
  bool flag() const;
  std::string string() const;
  /// A SHA-256: 64 digits of 0-9 and a-f.
  std::string sha256() const;
  bool is_string() const { return value_->is_string(); }
  bool is_null() const { return value_->is_null(); }

  void expect(bool condition, std::string_view what) const;

 private:
  const Json* value_;
  std::string path_;
  std::string* problem_;
};

}  // namespace sala
