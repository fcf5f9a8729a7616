// Answers texts of bundle.json, for tests in Python: each comes as its length, 4 bytes, little endian, and so does the
// answer, which is empty if the text is taken, else the error's message.

#include <cstdint>
#include <iostream>
#include <string>

#include "bundle/manifest.h"

int main() {
  uint32_t bytes = 0;
  while (std::cin.read(reinterpret_cast<char*>(&bytes), sizeof bytes)) {
    std::string text(bytes, '\0');
    if (!std::cin.read(text.data(), static_cast<std::streamsize>(bytes))) return 1;
    const auto manifest = sala::parse_manifest(text, "bundle.json");
    const std::string answer = manifest ? "" : manifest.error().message;
    bytes = static_cast<uint32_t>(answer.size());
    std::cout.write(reinterpret_cast<const char*>(&bytes), sizeof bytes) << answer << std::flush;
  }
  return 0;
}
