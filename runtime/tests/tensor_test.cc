#include "sala/tensor.h"

#include <gtest/gtest.h>

namespace sala::test {
namespace {

TEST(Tensor, BytesOfElementsAreWholeAndBounded) {
  EXPECT_EQ(bytes_of(DType::kFloat32, 3), 12);
  EXPECT_EQ(bytes_of(DType::kBFloat16, 3), 6);
  EXPECT_EQ(bytes_of(DType::kFloat8E4M3FN, 3), 3);
  EXPECT_EQ(bytes_of(DType::kFloat4E2M1FN, 4), 2);
  EXPECT_EQ(bytes_of(DType::kFloat4E2M1FN, 3), 2);
  EXPECT_EQ(bytes_of(DType::kFloat4E2M1FN, INT64_MAX), int64_t{1} << 62);
  EXPECT_EQ(bytes_of(DType::kInt64, 0), 0);
  EXPECT_EQ(bytes_of(DType::kInt64, INT64_MAX / 8), INT64_MAX / 8 * 8);
  EXPECT_EQ(bytes_of(DType::kInt64, INT64_MAX / 8 + 1), -1);
  EXPECT_EQ(bytes_of(DType::kUInt8, elements_of({INT64_MAX, 2})), -1);
}

}  // namespace
}  // namespace sala::test
