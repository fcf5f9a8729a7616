# Defines sala::tensorrt_headers: the open TensorRT headers, 10.14 or later. Nothing of TensorRT is linked. Taken from
#   1. TENSORRT_ROOT, a CMake variable or an environment variable: an SDK, with include/NvInfer.h;
#   2. the compiler's default include path (a distribution's package), if recent enough;
#   3. the wheel named in tensorrt_headers.txt, fetched by pip, which checks its hash.

set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "TensorRT SDK whose headers the plugins are compiled against")

set(SALA_TENSORRT_MINIMUM 10.14)

# Sets `result` to the version that NvInferVersion.h in a directory states, "0" if it states none. Old headers number the
# NV_TENSORRT_ macros, recent ones those that they name.
function(sala_tensorrt_version result include_dir)
  set(version 0)
  if(EXISTS "${include_dir}/NvInferVersion.h")
    file(STRINGS "${include_dir}/NvInferVersion.h" lines REGEX "define +(NV_TENSORRT|TRT)_(MAJOR|MINOR)[A-Z_]* +[0-9]+")
    if(lines MATCHES "_MAJOR[A-Z_]* +([0-9]+)")
      set(version "${CMAKE_MATCH_1}")
      if(lines MATCHES "_MINOR[A-Z_]* +([0-9]+)")
        string(APPEND version ".${CMAKE_MATCH_1}")
      endif()
    endif()
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# A validator of find_path.
function(sala_tensorrt_is_recent result include_dir)
  sala_tensorrt_version(version "${include_dir}")
  if(version VERSION_LESS SALA_TENSORRT_MINIMUM)
    message(STATUS "Headers in ${include_dir} are TensorRT ${version}, ${SALA_TENSORRT_MINIMUM} is needed: not used")
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

if(TENSORRT_ROOT)
  find_path(SALA_TENSORRT_INCLUDE_DIR NvInfer.h PATHS "${TENSORRT_ROOT}/include" NO_DEFAULT_PATH)
  if(NOT SALA_TENSORRT_INCLUDE_DIR)
    message(FATAL_ERROR "TENSORRT_ROOT=${TENSORRT_ROOT} has no include/NvInfer.h: name an SDK, or leave it unset")
  endif()
  sala_tensorrt_version(version "${SALA_TENSORRT_INCLUDE_DIR}")
  if(version VERSION_LESS SALA_TENSORRT_MINIMUM)
    message(FATAL_ERROR
      "TENSORRT_ROOT=${TENSORRT_ROOT} is TensorRT ${version}: name ${SALA_TENSORRT_MINIMUM} or later, or leave it unset")
  endif()
else()
  find_path(SALA_TENSORRT_INCLUDE_DIR NvInfer.h VALIDATOR sala_tensorrt_is_recent)
endif()

if(NOT SALA_TENSORRT_INCLUDE_DIR)
  set(wheel_dir "${CMAKE_CURRENT_BINARY_DIR}/tensorrt_headers")
  message(STATUS "Fetching TensorRT headers")
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -m pip download --quiet --no-deps --require-hashes --dest "${wheel_dir}"
            --requirement "${CMAKE_CURRENT_LIST_DIR}/tensorrt_headers.txt"
    RESULT_VARIABLE status
    ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "Cannot fetch TensorRT headers; set TENSORRT_ROOT to an SDK instead. pip said:\n${output}")
  endif()
  file(GLOB wheel "${wheel_dir}/*.whl")
  file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${wheel_dir}" PATTERNS "*/include/tensorrt/*")
  file(GLOB_RECURSE header "${wheel_dir}/*/NvInfer.h")
  get_filename_component(include_dir "${header}" DIRECTORY)
  set(SALA_TENSORRT_INCLUDE_DIR "${include_dir}" CACHE PATH "Directory of NvInfer.h" FORCE)
endif()
message(STATUS "TensorRT headers: ${SALA_TENSORRT_INCLUDE_DIR}")

add_library(sala_tensorrt_headers INTERFACE)
add_library(sala::tensorrt_headers ALIAS sala_tensorrt_headers)
target_include_directories(sala_tensorrt_headers SYSTEM INTERFACE "${SALA_TENSORRT_INCLUDE_DIR}")
target_link_libraries(sala_tensorrt_headers INTERFACE sala::cuda_headers)
