// Where libraries that are opened at run time are looked for.

#pragma once

#include <filesystem>
#include <string>

namespace sala {

/// A file whose name begins with `name`: beside this code, in ../lib from there, or in a Python installation of the
/// same prefix, whose site-packages has `package_folder`. Empty if there is none.
std::filesystem::path find_library(const std::string& name, const std::string& package_folder);

}  // namespace sala
