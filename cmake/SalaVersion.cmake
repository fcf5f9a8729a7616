# Sets SALA_VERSION to the release, which stands in sala_export/VERSION alone.
set(sala_version_file "${CMAKE_CURRENT_LIST_DIR}/../sala_export/VERSION")
file(STRINGS "${sala_version_file}" SALA_VERSION LIMIT_COUNT 1)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${sala_version_file}")
