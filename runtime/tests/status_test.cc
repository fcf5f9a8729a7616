#include "sala/status.h"

#include <cstdint>
#include <fstream>
#include <string>

namespace sala {
namespace {

// The table that the test of Python's `printable` reads too.
nlohmann::json cases() {
  std::ifstream file(PRINTABLE_CASES);
  return nlohmann::json::parse(file);
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i < digits.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

TEST(Status, MessagesArePrintableLines) {
  const nlohmann::json table = cases();
  ASSERT_GT(table.size(), 10U);
  for (const auto& [name, entry] : table.items()) {
    const std::string bytes = from_hex(entry["bytes"]);
    const std::string printed = entry["printed"];
    EXPECT_EQ(printable(bytes), printed) << name;
    EXPECT_EQ(error(ErrorCode::kBundleDamaged, "at ", 3, ": ", bytes).message, "at 3: " + printed) << name;
    EXPECT_EQ(printable(printed), printed) << name;
  }
}

TEST(Status, LongValueLeavesTheBeginningAndTheEndOfAMessage) {
  for (const char* character : {"x", "\u00e9", "\u20ac", "\U0001f600", "\x80"}) {
    std::string value;
    while (value.size() < 10'000'000) value += character;
    const std::string message = error(ErrorCode::kBundleDamaged, "model is \"", value, "\": copy it again").message;
    EXPECT_LE(message.size(), 4 * 4000U);
    EXPECT_TRUE(message.starts_with("model is \"")) << message;
    EXPECT_TRUE(message.ends_with("\": copy it again")) << message;
    EXPECT_EQ(message.find("\\x") != std::string::npos, std::string_view(character) == "\x80") << message;
  }
  const std::string longest(4000, 'x');
  EXPECT_EQ(error(ErrorCode::kBundleDamaged, longest).message, longest);
}

}  // namespace
}  // namespace sala
