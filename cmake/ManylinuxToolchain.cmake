# Toolchain file: Linux with glibc 2.28 or newer, on this processor or another, with the clang of the Python package
# ziglang. What it links brings its own C++ library. For wheels, see scripts/build_wheels.py.
set(SALA_PROCESSOR "${CMAKE_HOST_SYSTEM_PROCESSOR}" CACHE STRING "x86_64 or aarch64")
set(SALA_LINKED "${CMAKE_BINARY_DIR}/manylinux" CACHE INTERNAL "Directory of what every library is linked with")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SALA_PROCESSOR SALA_LINKED SALA_ZIG)

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${SALA_PROCESSOR})
find_program(SALA_ZIG NAMES python-zig zig)
if(NOT SALA_ZIG)
  message(FATAL_ERROR "There is no zig: pip install ziglang")
endif()
set(CMAKE_C_COMPILER ${SALA_ZIG} cc -target ${SALA_PROCESSOR}-linux-gnu.2.28)
set(CMAKE_CXX_COMPILER ${SALA_ZIG} c++ -target ${SALA_PROCESSOR}-linux-gnu.2.28)
set(CMAKE_ASM_COMPILER ${CMAKE_C_COMPILER})

# CMake wants a program for these, without arguments.
foreach(tool IN ITEMS ar ranlib)
  string(TOUPPER ${tool} name)
  set(CMAKE_${name} ${SALA_LINKED}/zig-${tool})
  if(NOT EXISTS ${CMAKE_${name}})
    file(WRITE ${CMAKE_${name}} "#!/bin/sh\nexec '${SALA_ZIG}' ${tool} \"$@\"\n")
    file(CHMOD ${CMAKE_${name}} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endif()
endforeach()

# What GCC links into a library and Zig does not. An unwinder of its own would meet frames that the system's unwinder
# made when Python ends a thread (runtime/bindings/interpreter_lock.h). So the system's takes its place.
set(sources ${CMAKE_CURRENT_LIST_DIR}/manylinux)
set(finalizer ${SALA_LINKED}/finalizer.o)
set(unwinder ${SALA_LINKED}/libgcc_s.so.1)
if(NOT EXISTS ${unwinder})
  execute_process(COMMAND ${CMAKE_C_COMPILER} -O1 -fPIC -c ${sources}/finalizer.c -o ${finalizer}
                  COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${CMAKE_C_COMPILER} -O1 -fPIC -shared -s -Wl,-soname,libgcc_s.so.1 ${sources}/unwinder.c
                          -o ${unwinder} COMMAND_ERROR_IS_FATAL ANY)
endif()
# -s: debug information would make a library nine times as large.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-s")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-s \"${finalizer}\" \"${unwinder}\"")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-s \"${finalizer}\" \"${unwinder}\"")
