# debian_compiler(OUT NAMES PROGRAMS PACKAGES PACKAGES FOLDER NAME): the path of a compiler, for toolchain files. The
# system's if it has one of NAMES, else Debian's, fetched once into build/tools/NAME of the checkout and kept there.
include_guard(GLOBAL)
include(${CMAKE_CURRENT_LIST_DIR}/DebianPackage.cmake)

# OUT_COMPILER is the program to call, OUT_ROOT the folder it was unpacked into, empty for the system's.
function(debian_compiler out)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "FOLDER" "NAMES;PACKAGES")
  find_program(found NAMES ${arg_NAMES} NO_CACHE)
  set(root "")
  if(NOT found)
    list(GET arg_NAMES 0 name)
    set(directory ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../build/tools/${arg_FOLDER})
    cmake_path(NORMAL_PATH directory)
    set(root ${directory}/root)
    debian_tools(NAMES ${arg_PACKAGES} DIRECTORY ${directory} ADVICE "Install ${name}, or Debian's ${arg_PACKAGES}.")
    # Unpacked, it finds its own libraries only if told where they are.
    set(found ${directory}/${name})
    if(NOT EXISTS ${found})
      file(GLOB libraries LIST_DIRECTORIES TRUE ${root}/usr/lib/*-linux-gnu)
      list(JOIN libraries ":" path)
      file(GLOB program ${root}/usr/bin/${name} ${root}/usr/bin/${name}-[0-9]*)
      list(GET program 0 program)
      file(WRITE ${found} "#!/bin/sh\nLD_LIBRARY_PATH='${path}' exec '${program}' \"$@\"\n")
      file(CHMOD ${found} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ
           WORLD_EXECUTE)
    endif()
  endif()
  set(${out}_COMPILER ${found} PARENT_SCOPE)
  set(${out}_ROOT "${root}" PARENT_SCOPE)
endfunction()
