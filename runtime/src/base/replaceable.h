// Whether a file may take the place of another one, and what it takes over from it.

#pragma once

#include <optional>
#include <string>

namespace sala {

/// Why this process could not rename a file to `name` in the open directory `folder`, as far as that shows before; it
/// ends with what to do. Nothing if it could. What has the name, if anything, is a regular file.
std::optional<std::string> obstacle_to_replacing(int folder, const std::string& name);

/// Gives the open `file` the mode, the access control list and, where that is possible, the owner of the regular file
/// `name` in `folder`, whose path is `path`. False with errno if that fails; true if nothing has the name.
bool take_over_attributes(int file, int folder, const std::string& name, const std::string& path);

}  // namespace sala
