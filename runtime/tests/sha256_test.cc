#include "base/sha256.h"

#include <gtest/gtest.h>

#include <string>

namespace sala::test {
namespace {

// Test vectors of FIPS 180-4's companion examples.
TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnHowTheBytesArrive) {
  for (size_t length = 50; length < 135; ++length) {
    const std::string bytes(length, 'x');
    Sha256 hash;
    for (size_t i = 0; i < length; i += 7) hash.update(std::string_view(bytes).substr(i, 7));
    EXPECT_EQ(hash.finish(), sha256(bytes)) << length;
  }
}

TEST(Sha256, IsTheSameWithAndWithoutTheProcessorsInstructions) {
  if (best_sha256_code() == Sha256Code::kPortable) GTEST_SKIP() << "this processor has none";
  std::string bytes;
  for (size_t length = 0; length < 300; ++length) {
    Sha256 portable(Sha256Code::kPortable), fast(Sha256Code::kX86);
    portable.update(bytes);
    fast.update(bytes);
    EXPECT_EQ(portable.finish(), fast.finish()) << length;
    bytes += static_cast<char>(length * 37 + length / 5);
  }
}

}  // namespace
}  // namespace sala::test
