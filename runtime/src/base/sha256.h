// SHA-256 (FIPS 180-4), with the processor's instructions for it where it has them.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/file.h"
#include "sala/status.h"

namespace sala {

enum class Sha256Code { kPortable, kX86 };

/// The faster one that this processor runs.
Sha256Code best_sha256_code();

class Sha256 {
 public:
  explicit Sha256(Sha256Code code = best_sha256_code()) : code_(code) {}

  void update(std::string_view bytes);
  /// Lower-case hexadecimal digits; the object is used up.
  std::string finish();

 private:
  void compress(const unsigned char* block);

  Sha256Code code_;
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_;
  size_t filled_ = 0;
  uint64_t bytes_ = 0;
};

std::string sha256(std::string_view bytes);

Expected<std::string> sha256(const File& file);

}  // namespace sala
