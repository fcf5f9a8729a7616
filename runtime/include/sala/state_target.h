// A place for a state, taken before the work whose result it will hold.

#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "sala/status.h"

namespace sala {

class ReplacedFile;

/// The path of a state file that this process alone may write, from `open` until this object is destroyed.
///
/// Open it before a long prefill: what would make a save fail shows at once. Until `Session::save` succeeds, what was
/// at the path stays there untouched, and a process that is killed leaves at most a folder `.NAME.partial`, which the
/// next save removes. One save may succeed. After a failed one you can try again. Use it from one thread at a time.
class StateTarget {
 public:
  /// A link is written through. kStateUnwritable for a directory, FIFO, device or socket, for a missing or read-only
  /// folder, and while another process writes to the path.
  static Expected<StateTarget> open(const std::filesystem::path& path);

  StateTarget(StateTarget&&) noexcept;
  StateTarget& operator=(StateTarget&&) noexcept;
  /// Without a save it leaves everything as it was.
  ~StateTarget();

  const std::filesystem::path& path() const;

  /// kStateUnwritable if the disk has no room for a file of so many bytes, or this process may not write one so large.
  /// `Model::state_bytes` tells how many a state takes.
  Status require_room(int64_t bytes) const;

 private:
  friend class Session;
  explicit StateTarget(std::unique_ptr<ReplacedFile> file);
  std::unique_ptr<ReplacedFile> file_;
};

}  // namespace sala
