"""Where the native libraries of this installation are."""

from __future__ import annotations

from pathlib import Path

import sala_export

from .errors import BuildError


def plugin_library() -> Path:
    """The TensorRT plugins of all operators, for `get_plugin_registry().load_library`.

    Raises: BuildError if the package was not installed, only its sources found.
    """
    return _library("libsala_plugins.so")


def soname_shim() -> Path:
    """A library of the name that the ONNX parser of TensorRT for RTX opens but its wheel lacks.

    To be loaded into the process after `tensorrt_rtx` (on which it depends by name) and before the first parser.

    Raises: BuildError as `plugin_library`.
    """
    return _library("libtensorrt_rtx.so")


def onnxruntime_operators() -> Path:
    """The operators on the CPU, as a library of ONNX Runtime custom operators.

    Raises: BuildError as `plugin_library`.
    """
    return _library("libsala_ort.so")


def _library(name: str) -> Path:
    # An editable installation has two directories: the sources and, for what CMake built, the installed one.
    directories = [Path(directory) / "lib" for directory in sala_export.__path__]
    for directory in directories:
        if (directory / name).is_file():
            return directory / name
    searched = ", ".join(map(str, directories))
    raise BuildError(f"{name} is not in {searched}: install the package with pip, which builds it")
