"""Runs programs that are killed, or whose calls fail, at a chosen change of the file system (file_faults.c)."""

from __future__ import annotations

import ctypes
import enum
import functools
import mmap
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAMED_CALLS, NAME_BYTES = 4096, 16
"""As in file_faults.c."""

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-file-faults-")


class Effect(enum.IntEnum):
    """What happens at the chosen call. The numbers are those of `enum effect` in file_faults.c."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    FAIL = 3
    FAIL_FROM = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A kill or a failure at one call. By default calls are only counted."""

    at: int = 0
    """Number of the call, 1 for the first."""
    effect: Effect = Effect.COUNT
    error: int = 0
    """The errno with which it fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a program ended."""

    status: int
    """Exit code, or minus the number of the signal."""
    out: str
    told: str
    """What it wrote to stderr."""
    calls: tuple[str, ...]
    """Names of the calls that changed the file system below the directory, or would have."""

    @property
    def was_killed(self) -> bool:
        return self.status in (-signal.SIGKILL, 128 + signal.SIGKILL)


class _Orders(ctypes.Structure):
    """`struct orders` of file_faults.c."""

    _fields_ = (
        ("calls", ctypes.c_int64),
        ("at", ctypes.c_int64),
        ("effect", ctypes.c_int64),
        ("error", ctypes.c_int64),
        ("below", ctypes.c_char * 4096),
        ("names", ctypes.c_char * NAME_BYTES * NAMED_CALLS),
    )


def run_with_fault(command: Sequence[str | Path], directory: Path, fault: Fault, *, timeout_s: float = 120) -> Outcome:
    """Run a command in `directory`, with the fault at its calls there."""
    below = os.fsencode(directory.resolve())
    with tempfile.NamedTemporaryFile(prefix="sala-test-orders-") as file:
        file.truncate(ctypes.sizeof(_Orders))
        with mmap.mmap(file.fileno(), 0) as shared:
            shared[:] = bytes(_Orders(at=fault.at, effect=fault.effect, error=fault.error, below=below))
            done = subprocess.run(
                [str(word) for word in command],
                cwd=directory,
                env=os.environ | {"LD_PRELOAD": str(_library()), "FILE_FAULTS_ORDERS": file.name},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
            orders = _Orders.from_buffer_copy(shared)
    calls = tuple(name.value.decode() for name in orders.names[: orders.calls])
    out, told = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    return Outcome(status=done.returncode, out=out, told=told, calls=calls)


@functools.cache
def _library() -> Path:
    source = Path(__file__).with_suffix(".c")
    library = Path(_FOLDER.name) / "file_faults.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return library
