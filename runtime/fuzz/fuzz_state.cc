// Any file as a state, on the mock engine: restored into a session that works, or refused with 3xx, or because it does
// not fit. A state that is taken is saved and restored again with the same logits. Every input is tried twice: as it
// is, and with the hash that fits it, without which hardly a mutation would get past the hash.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "mock_engine.h"
#include "state_hash.h"

namespace {

using namespace sala;
using namespace sala::test;

/// A file in memory, under a name.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& content) : descriptor_(memfd_create("state", 0)) {
    const auto size = static_cast<ssize_t>(content.size());
    if (descriptor_ < 0 || ::write(descriptor_, content.data(), content.size()) != size) std::abort();
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(descriptor_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

constexpr int64_t kMaxContext = 256;

bool expected(ErrorCode code) {
  const int32_t number = static_cast<int32_t>(code);
  return number / 100 == 3 || code == ErrorCode::kContextExceeded;
}

void check_taken(const Mock& mock, Session& session) {
  if (session.position() > kMaxContext) std::abort();
  if (session.position() > 0 && session.position() < kMaxContext) {
    if (!session.decode(3)) std::abort();
  }
  const std::string path = "/dev/shm/sala-fuzz-" + std::to_string(getpid());
  if (!session.save(path)) std::abort();
  const auto again = mock.model.restore(path, {.max_context = kMaxContext, .chunk_tokens = {}});
  unlink(path.c_str());
  if (!again || again->logits().size() != session.logits().size()) std::abort();
  // Bits, for a state may hold NaN.
  if (session.logits().empty()) return;
  if (std::memcmp(again->logits().data(), session.logits().data(), session.logits().size_bytes()) != 0) std::abort();
}

void try_file(const std::string& content) {
  static const Mock mock;
  const MemoryFile file(content);
  auto session = mock.model.restore(file.path(), {.max_context = kMaxContext, .chunk_tokens = {}});
  if (session) {
    check_taken(mock, *session);
  } else if (!expected(session.error().code) || session.error().message.empty()) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  try_file(content);
  try_file(with_hash(content));
  return 0;
}
