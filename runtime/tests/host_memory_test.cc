#include <gtest/gtest.h>

#include <cstring>

#include "sala/engine.h"

namespace sala::test {
namespace {

TEST(HostMemory, IsZeroWhenAllocatedAndWhenCleared) {
  constexpr int64_t kBytes = 100'003;
  auto buffer = host_memory().allocate(kBytes);
  ASSERT_TRUE(buffer);
  char* data = static_cast<char*>(buffer->data());
  const auto sum = [&] {
    int64_t total = 0;
    for (int64_t i = 0; i < kBytes; ++i) total += data[i];
    return total;
  };
  EXPECT_EQ(sum(), 0);
  std::memset(data, 1, kBytes);
  EXPECT_EQ(sum(), kBytes);
  ASSERT_TRUE(host_memory().clear(*buffer));
  EXPECT_EQ(sum(), 0);
}

TEST(HostMemory, HasNoRoomForMoreThanTheAddressSpace) {
  EXPECT_EQ(host_memory().allocate(INT64_MAX / 2).error().code, ErrorCode::kOutOfMemory);
}

TEST(HostMemory, GivesAnAddressForNothing) {
  const auto buffer = host_memory().allocate(0);
  ASSERT_TRUE(buffer);
  EXPECT_NE(buffer->data(), nullptr);
}

}  // namespace
}  // namespace sala::test
