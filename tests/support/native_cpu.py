"""The programs of tests/plugins/native_cpu, which call the CPU operators without ONNX Runtime."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "plugins" / "native_cpu"


def run(*command: str | Path) -> str:
    """What a command that must succeed printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_programs(build: Path, programs: Sequence[str], *options: str) -> None:
    """Builds programs in a folder, with little optimisation to be quick."""
    configure = ["cmake", "-S", SOURCE, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    run(*configure, "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *options)
    run("cmake", "--build", build, "--target", *programs)
