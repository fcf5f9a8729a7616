# debian_package(NAME PACKAGE DIRECTORY DIR ADVICE TEXT): unpacks a package of Debian 13 into DIR/root, once. For
# build-time files that no Python package carries.
#
# debian_tools(NAMES PACKAGES DIRECTORY DIR ADVICE TEXT): likewise programs, of the release that this machine runs, with
# all that they need and the machine lacks. Their libraries are in DIR/root/usr/lib/<machine>.
#
# Both work on any machine that gets Debian or a derivative's Debian source through apt: without root, without installing
# anything, and without package lists fetched before. apt checks Debian's signature.
include_guard(GLOBAL)

set(debian_package_suite trixie)

# Runs a command; stops with its output and `advice` if it fails.
function(debian_package_run advice)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "Debian package: this failed (${result}): ${command}\n${output}\n${advice}")
  endif()
endfunction()

# Where this machine gets Debian from; empty if it does not.
function(debian_package_mirror out)
  set(uri "")
  find_program(DEBIAN_APT_GET apt-get)
  find_program(DEBIAN_DPKG_DEB dpkg-deb)
  if(DEBIAN_APT_GET AND DEBIAN_DPKG_DEB)
    # Works on a machine whose package lists were never fetched, unlike `apt-get indextargets`.
    execute_process(COMMAND ${DEBIAN_APT_GET} update --print-uris OUTPUT_VARIABLE uris ERROR_QUIET)
    if(uris MATCHES "'([^'\n]*/debian)/dists/")
      set(uri "${CMAKE_MATCH_1}")
    endif()
  endif()
  set(${out} "${uri}" PARENT_SCOPE)
endfunction()

# Empty directories below `scratch` for apt, which `out` then calls.
function(debian_package_apt out name scratch advice)
  debian_package_mirror(uri)
  if(uri STREQUAL "")
    message(FATAL_ERROR "${name} is not on this system, and it has no Debian source to take it from.\n${advice}")
  endif()
  message(STATUS "Fetching Debian's ${name}")
  file(REMOVE_RECURSE ${scratch})
  file(MAKE_DIRECTORY ${scratch}/lists/partial ${scratch}/cache/archives/partial ${scratch}/download)
  set(${out} ${DEBIAN_APT_GET} -q -o Dir::State::Lists=${scratch}/lists -o Dir::Cache=${scratch}/cache
    -o Acquire::Languages=none -o APT::Sandbox::User= PARENT_SCOPE)
  set(uri "${uri}" PARENT_SCOPE)
endfunction()

# Unpacks every package below `packages`, and gives the result its final name.
function(debian_package_unpack packages scratch directory advice)
  file(GLOB archives ${packages}/*.deb)
  foreach(archive IN LISTS archives)
    debian_package_run("${advice}" ${DEBIAN_DPKG_DEB} -x ${archive} ${scratch}/root)
  endforeach()
  file(RENAME ${scratch}/root ${directory}/root)
  file(REMOVE_RECURSE ${scratch})
endfunction()

function(debian_package)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "NAME;DIRECTORY;ADVICE" "")
  if(EXISTS ${arg_DIRECTORY}/root)
    return()
  endif()
  set(scratch ${arg_DIRECTORY}/scratch)
  debian_package_apt(apt_get ${arg_NAME} ${scratch} "${arg_ADVICE}")
  set(source "Types: deb\nURIs: ${uri}\nSuites: ${debian_package_suite}\nComponents: main\n")
  set(keyring /usr/share/keyrings/debian-archive-keyring.gpg)
  if(EXISTS ${keyring})
    string(APPEND source "Signed-By: ${keyring}\n")
  endif()
  file(WRITE ${scratch}/debian.sources "${source}")
  list(APPEND apt_get -o Dir::Etc::SourceList=${scratch}/debian.sources -o Dir::Etc::SourceParts=-)
  debian_package_run("${arg_ADVICE}" ${apt_get} -o APT::Update::Error-Mode=any update)
  debian_package_run("${arg_ADVICE}" ${CMAKE_COMMAND} -E chdir ${scratch}/download ${apt_get} download ${arg_NAME})
  debian_package_unpack(${scratch}/download ${scratch} ${arg_DIRECTORY} "${arg_ADVICE}")
endfunction()

function(debian_tools)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "DIRECTORY;ADVICE" "NAMES")
  if(EXISTS ${arg_DIRECTORY}/root)
    return()
  endif()
  set(scratch ${arg_DIRECTORY}/scratch)
  list(GET arg_NAMES 0 name)
  debian_package_apt(apt_get ${name} ${scratch} "${arg_ADVICE}")
  debian_package_run("${arg_ADVICE}" ${apt_get} -o APT::Update::Error-Mode=any update)
  # Downloading changes nothing of the system, so the lock that only root can take is not needed.
  debian_package_run("${arg_ADVICE}" ${apt_get} install --yes --download-only --no-install-recommends
    -o Debug::NoLocking=1 ${arg_NAMES})
  debian_package_unpack(${scratch}/cache/archives ${scratch} ${arg_DIRECTORY} "${arg_ADVICE}")
endfunction()
