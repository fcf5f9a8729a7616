# The JSON library nlohmann-json, as target `nlohmann_json::nlohmann_json`: the system's (Debian: nlohmann-json3-dev), or
# the headers in the Python package of the same name (`pip install nlohmann-json`), which this project's wheel build
# requires, or Debian's, taken through apt into the build tree. Headers only: nothing of it is needed at run time.
include_guard(GLOBAL)
include(${CMAKE_CURRENT_LIST_DIR}/../../cmake/DebianPackage.cmake)

find_package(nlohmann_json 3.11 QUIET CONFIG)
if(NOT nlohmann_json_FOUND)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  set(nlohmann_json_missing TRUE)
  if(Python3_FOUND)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c
              "import importlib.util as u; print(u.find_spec('nlohmann_json').submodule_search_locations[0], end='')"
      OUTPUT_VARIABLE nlohmann_json_package
      RESULT_VARIABLE nlohmann_json_missing
      ERROR_QUIET)
  endif()
  set(nlohmann_json_include ${nlohmann_json_package}/include)
  if(nlohmann_json_missing)
    set(nlohmann_json_include ${CMAKE_BINARY_DIR}/nlohmann_json/root/usr/include)
    debian_package(NAME nlohmann-json3-dev DIRECTORY ${CMAKE_BINARY_DIR}/nlohmann_json
                   ADVICE "Run `pip install nlohmann-json==3.12.0`, or install the system package nlohmann-json3-dev.")
  endif()
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED GLOBAL)
  set_target_properties(nlohmann_json::nlohmann_json PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${nlohmann_json_include})
endif()
