// Any text as token ids of sala-run, and any ids as prompts, fed in pieces: a session takes them or refuses them with
// 1xx and is as it was, and after all of that still computes what a new one does.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "mock_engine.h"
#include "sala/prefiller.h"
#include "token_ids.h"

namespace {

using namespace sala;
using namespace sala::test;

constexpr int64_t kMaxContext = 64;

/// Feeds pieces whose sizes come from `sizes`; true if the whole was taken.
bool feed(Session& session, std::span<const int32_t> ids, std::string_view sizes) {
  const int64_t before = session.position();
  auto prefiller = Prefiller::create(session, {});
  if (!prefiller) std::abort();
  bool taken = true;
  for (size_t turn = 0; !ids.empty(); ++turn) {
    const size_t size = std::min<size_t>(ids.size(), static_cast<uint8_t>(sizes[turn % sizes.size()]));
    const Status fed = prefiller->feed(ids.first(size));
    taken = taken && fed;
    if (!fed && static_cast<int32_t>(fed.error().code) / 100 != 1) std::abort();
    ids = ids.subspan(std::max<size_t>(1, size));
  }
  const auto logits = prefiller->finish();
  if (!logits && logits.error().code != ErrorCode::kEmptyPrompt) std::abort();
  if (!logits && session.position() != before) std::abort();
  return taken && logits;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Mock mock;
  if (size < sizeof(int32_t)) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto parsed = parse_token_ids(text, "ids");
  std::vector<int32_t> raw(size / sizeof(int32_t));
  std::memcpy(raw.data(), data, raw.size() * sizeof(int32_t));
  Session session = mock.session(kMaxContext, 1 + data[0] % 32);
  Session fresh = mock.session(kMaxContext, 64);
  for (const auto& ids : {parsed ? *parsed : std::vector<int32_t>(), raw}) {
    feed(session, ids, text.substr(0, 4));
    if (session.position() > kMaxContext) std::abort();
    // What it holds now, whatever was refused on the way.
    const auto taken = session.tokens().subspan(static_cast<size_t>(fresh.position()));
    if (!taken.empty() && !fresh.prefill(taken)) std::abort();
  }
  if (values(fresh.logits()) != values(session.logits())) std::abort();
  return 0;
}
