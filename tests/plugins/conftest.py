"""Builds the fake CUDA drivers and the program that plays TensorRT, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.plugin_calls import PluginDriver


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
        assert completed.returncode == 0, completed.stdout + completed.stderr
    return build


@pytest.fixture(scope="session")
def driver(native_build: Path) -> PluginDriver:
    """TensorRT on a driver of CUDA 12.4 or later."""
    return PluginDriver(native_build / "plugin_driver_cuda_12.4")


@pytest.fixture(scope="session")
def cuda_12_0_driver(native_build: Path) -> PluginDriver:
    """TensorRT on the oldest driver that the plugins take."""
    return PluginDriver(native_build / "plugin_driver_cuda_12.0")
