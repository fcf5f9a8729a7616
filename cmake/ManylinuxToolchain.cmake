# Toolchain file: Linux with glibc 2.28 or newer, on this processor or another, with the clang of the Python package
# ziglang. What it links brings its own C++ library. For wheels, see scripts/build_wheels.py.
set(SALA_PROCESSOR "${CMAKE_HOST_SYSTEM_PROCESSOR}" CACHE STRING "x86_64 or aarch64")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SALA_PROCESSOR)

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${SALA_PROCESSOR})
find_program(SALA_ZIG NAMES zig python-zig NO_CMAKE_FIND_ROOT_PATH)
if(NOT SALA_ZIG)
  message(FATAL_ERROR "There is no zig: pip install ziglang")
endif()
set(CMAKE_C_COMPILER ${SALA_ZIG} cc -target ${SALA_PROCESSOR}-linux-gnu.2.28)
set(CMAKE_CXX_COMPILER ${SALA_ZIG} c++ -target ${SALA_PROCESSOR}-linux-gnu.2.28)
set(CMAKE_ASM_COMPILER ${CMAKE_C_COMPILER})
# Without its debug information a library has a ninth of the size.
set(CMAKE_EXE_LINKER_FLAGS_INIT -s)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
set(SALA_SYSTEM_UNWINDER ON)

# CMake wants a program for these, without arguments.
foreach(tool IN ITEMS ar ranlib)
  string(TOUPPER ${tool} name)
  set(CMAKE_${name} ${CMAKE_BINARY_DIR}/zig-${tool})
  if(NOT EXISTS ${CMAKE_${name}})
    file(WRITE ${CMAKE_${name}} "#!/bin/sh\nexec '${SALA_ZIG}' ${tool} \"$@\"\n")
    file(CHMOD ${CMAKE_${name}} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endif()
endforeach()
