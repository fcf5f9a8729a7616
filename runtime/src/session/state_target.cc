#include "sala/state_target.h"

#include "base/replaced_file.h"

namespace sala {

StateTarget::StateTarget(std::unique_ptr<ReplacedFile> file) : file_(std::move(file)) {}
StateTarget::StateTarget(StateTarget&&) noexcept = default;
StateTarget& StateTarget::operator=(StateTarget&&) noexcept = default;
StateTarget::~StateTarget() = default;

Expected<StateTarget> StateTarget::open(const std::filesystem::path& path) {
  auto file = ReplacedFile::open(path, ErrorCode::kStateUnwritable);
  if (!file) return file.error();
  return StateTarget(std::make_unique<ReplacedFile>(*std::move(file)));
}

const std::filesystem::path& StateTarget::path() const { return file_->path(); }

Status StateTarget::require_room(int64_t bytes) const {
  if (bytes < 0) return error(ErrorCode::kInvalidArgument, "bytes is ", bytes, ", expected 0 or more");
  return file_->require_room(bytes);
}

}  // namespace sala
