# Toolchain file: clang with its sanitizers and libFuzzer, the system's or else Debian's.
include(${CMAKE_CURRENT_LIST_DIR}/DebianToolchain.cmake)

debian_compiler(clang_cxx NAMES clang++ clang++-19 FOLDER clang PACKAGES clang-19 libclang-rt-19-dev)
set(CMAKE_CXX_COMPILER ${clang_cxx_COMPILER})
