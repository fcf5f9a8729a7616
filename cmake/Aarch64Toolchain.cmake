# Toolchain file: Linux on 64-bit ARM from another machine, with GCC, the system's or else Debian's.
include(${CMAKE_CURRENT_LIST_DIR}/DebianToolchain.cmake)

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
debian_compiler(aarch64_cxx NAMES aarch64-linux-gnu-g++ FOLDER aarch64 PACKAGES g++-aarch64-linux-gnu)
debian_compiler(aarch64_cc NAMES aarch64-linux-gnu-gcc FOLDER aarch64 PACKAGES g++-aarch64-linux-gnu)
set(CMAKE_CXX_COMPILER ${aarch64_cxx_COMPILER})
set(CMAKE_C_COMPILER ${aarch64_cc_COMPILER})
# The unpacked C library names its parts by where they would be if installed.
set(CMAKE_SYSROOT ${aarch64_cxx_ROOT})
# Headers alone come from this machine, and from where the build fetches them.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
