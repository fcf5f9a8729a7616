"""The build backend: scikit-build-core, and what the TensorRT plugins need to be compiled, if they are.

For example, `pip install . -C cmake.define.SALA_PLUGINS=OFF` fetches no Triton and compiles no GPU kernel. What it
installs runs bundles and builds none.
"""

from __future__ import annotations

import os
import sysconfig

# All of it: which hooks there are depends on the machine.
from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403

_Settings = dict[str, str | list[str]]

# Triton compiles the kernels and carries the CUDA headers; pip fetches the TensorRT headers. Triton 3.9 assembles for
# SM90 with the ptxas of CUDA 13.4: that of 12.9 may overwrite operands (sala_export/kernel_report/warp_groups.py).
_FOR_PLUGINS = ("pip", "triton>=3.9,<3.10")
_OFF = ("OFF", "FALSE", "NO", "0")


def get_requires_for_build_wheel(config_settings: _Settings | None = None) -> list[str]:
    """Return what a wheel needs to be built, beside `build-system.requires`."""
    return [*_backend.get_requires_for_build_wheel(config_settings), *_for_plugins(config_settings)]


def get_requires_for_build_editable(config_settings: _Settings | None = None) -> list[str]:
    """Return what an editable installation needs to be built, beside `build-system.requires`."""
    return [*_backend.get_requires_for_build_editable(config_settings), *_for_plugins(config_settings)]


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: _Settings | None = None) -> str:
    """Write the metadata of the wheel that `build_wheel` will build, and return the name of their directory."""
    _name_the_processor(config_settings)
    return _backend.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str, config_settings: _Settings | None = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel and return its name, for the processor that cmake/ManylinuxToolchain.cmake is told."""
    _name_the_processor(config_settings)
    return _backend.build_wheel(wheel_directory, config_settings, metadata_directory)


def _name_the_processor(config_settings: _Settings | None) -> None:
    """Set the variables that the tags of a wheel and of its module come from, in place of the machine that builds."""
    if processor := (config_settings or {}).get("cmake.define.SALA_PROCESSOR"):
        suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
        os.environ["SETUPTOOLS_EXT_SUFFIX"] = suffix.replace(os.uname().machine, str(processor))
        os.environ["_PYTHON_HOST_PLATFORM"] = f"linux-{processor}"


def _for_plugins(config_settings: _Settings | None) -> tuple[str, ...]:
    wanted = (config_settings or {}).get("cmake.define.SALA_PLUGINS", "ON")
    return () if str(wanted).upper() in _OFF else _FOR_PLUGINS
