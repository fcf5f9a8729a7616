"""The C++ runtime built on its own with sanitizers: its unit tests and the program `sala-run`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

REPOSITORY = Path(__file__).parents[2]
# Kept between test runs, unlike a temporary directory: the first build takes a minute or two, the next seconds.
_BUILD = REPOSITORY / "build" / "runtime-sanitized"


@functools.cache
def sanitized_build() -> Path:
    """The build directory, brought up to date once by each process of a test run, one after the other."""
    _BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(_BUILD / ".lock"):
        _build()
    return _BUILD


def _build() -> None:
    for command in (
        [
            "cmake",
            *("-S", str(REPOSITORY / "runtime"), "-B", str(_BUILD)),
            f"-DPython3_EXECUTABLE={sys.executable}",
            "-DSALA_RUNTIME_TESTS=ON",
            "-DSALA_SANITIZE=ON",
            # Unoptimised: compiling takes longer than running.
            "-DCMAKE_BUILD_TYPE=Debug",
            "-DCMAKE_CXX_FLAGS_DEBUG=-g1",
        ],
        ["cmake", "--build", str(_BUILD), "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
