# What `cmake --install` puts into a prefix: both libraries, the operators, sala-run, headers, the CMake package Sala and
# the pkg-config file sala. Everything may be moved elsewhere.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(installed sala sala_runtime sala-run)
if(SALA_OPERATORS)
  # Programs name it only by its path: $<TARGET_FILE:Sala::operators>.
  set_target_properties(sala_ort PROPERTIES EXPORT_NAME operators)
  list(APPEND installed sala_ort)
endif()
set_target_properties(sala_runtime PROPERTIES EXPORT_NAME runtime)

install(TARGETS ${installed} EXPORT SalaTargets
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/Sala)
install(EXPORT SalaTargets NAMESPACE Sala:: DESTINATION ${package} COMPONENT development)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/SalaConfig.cmake.in ${PROJECT_BINARY_DIR}/SalaConfig.cmake
  INSTALL_DESTINATION ${package})
# Below 1.0 a minor release may change the C++ interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/SalaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_file(${CMAKE_CURRENT_LIST_DIR}/sala.pc.in ${PROJECT_BINARY_DIR}/sala.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/SalaConfig.cmake ${PROJECT_BINARY_DIR}/SalaConfigVersion.cmake
  DESTINATION ${package} COMPONENT development)
install(FILES ${PROJECT_BINARY_DIR}/sala.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)
