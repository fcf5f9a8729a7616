# The JSON library nlohmann-json, as target `nlohmann_json::nlohmann_json`: the system's (Debian: nlohmann-json3-dev), or
# the headers in the Python package of the same name (`pip install nlohmann-json`), which this project's wheel build
# requires. Headers only: nothing of it is needed at run time.
include_guard(GLOBAL)

find_package(nlohmann_json 3.11 QUIET CONFIG)
if(NOT nlohmann_json_FOUND)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('nlohmann_json').submodule_search_locations[0], end='')"
    OUTPUT_VARIABLE nlohmann_json_package
    RESULT_VARIABLE nlohmann_json_missing
    ERROR_QUIET)
  if(nlohmann_json_missing OR NOT EXISTS ${nlohmann_json_package}/include/nlohmann/json.hpp)
    message(FATAL_ERROR "nlohmann-json was not found: run `${Python3_EXECUTABLE} -m pip install nlohmann-json==3.12.0`, "
                        "or install the system package nlohmann-json3-dev")
  endif()
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED GLOBAL)
  set_target_properties(nlohmann_json::nlohmann_json PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${nlohmann_json_package}/include)
endif()
