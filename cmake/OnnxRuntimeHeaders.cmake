# The C headers of ONNX Runtime, as target `onnxruntime_headers`. Python wheels of ONNX Runtime carry the library alone.
#
#   -D ONNXRUNTIME_ROOT=DIR   an unpacked release archive or a prefix; used if given, and then nothing else is
#   otherwise                 headers that the system has, or else those of Debian 13, taken through apt into the build
#                             tree (no root needed, nothing is installed) and checked against the hashes below
#
# The C interface is stable: what is built with these headers runs in every ONNX Runtime from their version on.
include_guard(GLOBAL)
include(${CMAKE_CURRENT_LIST_DIR}/DebianPackage.cmake)

set(ONNXRUNTIME_ROOT "" CACHE PATH "Directory that holds the headers of ONNX Runtime")
set(onnxruntime_subdirs include include/onnxruntime include/onnxruntime/core/session)

set(onnxruntime_debian_version 1.21)
set(onnxruntime_hashes
  onnxruntime_c_api.h 7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882
  onnxruntime_cxx_api.h b3b27d6a6fced0725e3f188379cca008b1d7a456997684756374d4b388f2cf05
  onnxruntime_cxx_inline.h 7f448e994c732eacd9e49900365fefa8f1ac998a6d6eb78e5f4aab1b8d9d8900
  onnxruntime_float16.h 6c4db3d1954b266c4febe413351af86cac922e3448538e7e452e51d646e56a4a)

function(onnxruntime_check_hashes directory advice)
  set(pairs ${onnxruntime_hashes})
  while(pairs)
    list(POP_FRONT pairs name expected)
    file(SHA256 ${directory}/${name} actual)
    if(NOT actual STREQUAL expected)
      message(FATAL_ERROR "ONNX Runtime headers: ${name} has SHA-256 ${actual}, expected ${expected} (version "
                          "${onnxruntime_debian_version})\n${advice}")
    endif()
  endwhile()
endfunction()

function(onnxruntime_find_headers out)
  set(advice "Unpack a release archive of ONNX Runtime and configure with -D ONNXRUNTIME_ROOT=DIR.")
  if(ONNXRUNTIME_ROOT)
    find_path(directory onnxruntime_c_api.h PATHS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES ${onnxruntime_subdirs}
      NO_DEFAULT_PATH NO_CACHE)
    if(NOT directory)
      message(FATAL_ERROR "ONNX Runtime headers: onnxruntime_c_api.h is not below ONNXRUNTIME_ROOT=${ONNXRUNTIME_ROOT}")
    endif()
  else()
    find_path(directory onnxruntime_c_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session NO_CACHE)
    if(NOT directory)
      set(fetched ${CMAKE_BINARY_DIR}/onnxruntime_headers)
      set(directory ${fetched}/root/usr/include/onnxruntime)
      debian_package(NAME libonnxruntime-dev DIRECTORY ${fetched} ADVICE "${advice}")
      onnxruntime_check_hashes(${directory} "${advice}")
    endif()
  endif()
  message(STATUS "Headers of ONNX Runtime: ${directory}")
  set(${out} ${directory} PARENT_SCOPE)
endfunction()

onnxruntime_find_headers(onnxruntime_include_dir)
add_library(onnxruntime_headers INTERFACE)
target_include_directories(onnxruntime_headers SYSTEM INTERFACE ${onnxruntime_include_dir})
