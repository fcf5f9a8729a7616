"""Finds what is installed with this package: its version, its native libraries and its GPU recipes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .errors import BuildError, ConfigError

VERSION = Path(__file__).with_name("VERSION").read_text(encoding="utf-8").strip()
"""The release, for example `0.1.0`. pyproject.toml and the CMake files read it from the same file."""


def package_directories() -> tuple[Path, ...]:
    """The directories of the package: one, or two for an editable installation.

    An editable installation has the sources and, for what CMake built, the installed directory, in either order.
    """
    # The parent package is always loaded by now. An import of it would tie this module to all that the package offers.
    package = sys.modules[__name__.rpartition(".")[0]]
    return tuple(Path(directory) for directory in package.__path__)


def plugin_library() -> Path:
    """The TensorRT plugins of all operators, for `get_plugin_registry().load_library`.

    Raises: BuildError if the package was not installed, only its sources found.
    """
    return _library("libsala_plugins.so")


def soname_shim() -> Path:
    """A library of the name that the ONNX parser of TensorRT for RTX opens but its wheel lacks.

    Load it into the process after `tensorrt_rtx` (on which it depends by name) and before the first parser.

    Raises: BuildError as `plugin_library`.
    """
    return _library("libtensorrt_rtx.so")


def onnxruntime_operators() -> Path:
    """The operators on the CPU, as a library of ONNX Runtime custom operators.

    Raises: BuildError as `plugin_library`.
    """
    return _library("libsala_ort.so")


def wheel_library(package: str, folder: str, name: str) -> Path | None:
    """A library inside an installed Python package, whose file begins with `name`; None if there is none.

    The package itself is not imported: only its library is needed.
    """
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    found = [path for location in locations or () for path in sorted(Path(location, folder).glob(f"{name}*"))]
    return found[0] if found else None


def onnxruntime_library() -> Path | None:
    """The library of the installed Python package onnxruntime; None if there is none, then the system is searched."""
    return wheel_library("onnxruntime", "capi", "libonnxruntime.so.")


def recipe_folder() -> Path:
    """The folder of the GPU recipes: `engines/` at the top of a source checkout, or inside the installed package.

    Raises: ConfigError if there is none.
    """
    packages = package_directories()
    # A new recipe is in the sources alone.
    checkouts = [package.parent for package in packages if (package.parent / "pyproject.toml").is_file()]
    for folder in (parent / "engines" for parent in (*checkouts, *packages)):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no folder engines/ in or beside {packages[0]}: reinstall sala-export")


def tensorrt_llm_module() -> Path:
    """The directory that you give to `--custom_module_dirs` of trtllm-serve and trtllm-bench.

    Raises: ConfigError if there is none.
    """
    directories = [package / "tensorrt_llm" / "module" / "sala_trtllm" for package in package_directories()]
    for directory in directories:
        if directory.is_dir():
            return directory
    raise ConfigError(f"no directory {directories[0]}: reinstall sala-export")


def _library(name: str) -> Path:
    directories = [directory / "lib" for directory in package_directories()]
    for directory in directories:
        if (directory / name).is_file():
            return directory / name
    searched = ", ".join(map(str, directories))
    raise BuildError(f"{name} is not in {searched}: install the package with pip, which builds it")
