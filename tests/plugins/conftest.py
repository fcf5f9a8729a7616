"""Builds the fake CUDA drivers and the programs that play TensorRT, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.plugin_calls import PluginDriver
from support.plugin_gpu import PluginProgram, named_file

from sala_export.installation import plugin_library


@pytest.fixture(scope="session")
def native_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the programs."""
    build = tmp_path_factory.mktemp("plugin-driver")
    source = Path(__file__).parent / "native"
    for command in (
        ["cmake", "-S", source, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", build],
    ):
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if completed.returncode != 0:
            sys.stderr.write(completed.stdout + completed.stderr)
            pytest.fail(f"tests/plugins/native: `{command[0]} {command[1]}` failed, see above", pytrace=False)
    return build


@pytest.fixture(scope="session")
def driver(native_build: Path) -> PluginDriver:
    """TensorRT on a driver of CUDA 12.4 or later."""
    return PluginDriver(native_build / "plugin_driver_cuda_12.4")


@pytest.fixture(scope="session")
def cuda_12_0_driver(native_build: Path) -> PluginDriver:
    """TensorRT on the oldest driver that the plugins take."""
    return PluginDriver(native_build / "plugin_driver_cuda_12.0")


@pytest.fixture(scope="session")
def real_program(request: pytest.FixtureRequest) -> PluginProgram:
    """TensorRT on the GPU of this machine, with the program and the library that the options name."""
    program = _given(request, "--plugin-driver") or request.getfixturevalue("native_build") / "plugin_driver"
    return PluginProgram(program=program, library=_given(request, "--plugin-library") or plugin_library())


def _given(request: pytest.FixtureRequest, option: str) -> Path | None:
    """The file that an option names."""
    value = request.config.getoption(option)
    return None if value is None else named_file(option, value)
