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

}  // namespace
}  // namespace sala
