// Whether there is memory for a request to begin.

#include <algorithm>
#include <limits>

#include "session/scheduler_thread.h"

namespace sala {

int64_t SchedulerThread::bytes_of_slots(const SessionCore& like) const {
  if (batch_ != nullptr || !BatchSlots::check(*model_, like)) return 0;
  const int64_t page = model_->engine->memory().page_bytes();
  int64_t bytes = 0;
  for (size_t i = 0; i < like.caches().size(); ++i) {
    const CacheSpec& spec = model_->step.caches[i];
    if (spec.rows != CacheRows::kAll) continue;
    const int64_t of_all = max_running_ * bytes_of(spec.past.dtype, elements_of(like.caches()[i].shape));
    bytes += (of_all + page - 1) / page * page;
  }
  return bytes;
}

std::optional<Status> SchedulerThread::admission(const Request& request) const {
  const Memory& memory = model_->engine->memory();
  const auto free = memory.free_bytes();
  if (!free) return free.error();
  int64_t room = free->value_or(std::numeric_limits<int64_t>::max());
  if (options_.max_cache_bytes) room = std::min(room, *options_.max_cache_bytes - memory.used_bytes());
  for (const Request* other : running_) room -= other->bytes_to_come();
  if (!running_.empty()) room -= bytes_of_slots(request.session);
  const int64_t needed = request.bytes_to_come();
  if (needed <= room) return success();
  if (!running_.empty()) return std::nullopt;
  return error(ErrorCode::kOutOfMemory, "the prompt and an answer of max_new_tokens take ", needed,
               " bytes of caches, and ", std::max<int64_t>(room, 0), " are left",
               options_.max_cache_bytes ? " of max_cache_bytes" : "", ": end other sessions, or ask for fewer tokens");
}

}  // namespace sala
