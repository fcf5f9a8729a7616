"""The process that a build runs in: `python -m sala_export.engine.worker PIPE_FD PARENT_PID`.

A build may abort inside a native library, and frees little of its memory. A process of its own keeps both from the
caller.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys
from pathlib import Path

from ..errors import DiskFullError, SalaError
from ..progress import ProgressCallback
from .builder import build_plan
from .flavour import select_flavour
from .job import BuildJob, BuildResult, progress_line, result_line

_PR_SET_PDEATHSIG = 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str]) -> int:
    """Run the job on stdin. Returns 0 if the last line of the pipe says how the build ended."""
    descriptor, parent = arguments
    die_with_parent(int(parent))
    job = BuildJob.from_json(sys.stdin.buffer.read())
    with os.fdopen(int(descriptor), "w", encoding="utf-8", buffering=1) as pipe:

        def progress(phase: str, done: int, total: int, unit: str = "steps") -> None:
            pipe.write(progress_line(phase, done, total))

        pipe.write(result_line(_run(job, progress)))
    return 0


def _run(job: BuildJob, progress: ProgressCallback) -> BuildResult:
    flavour = select_flavour(job.flavour)
    try:
        # A log that loses its last lines in a crash is of no use: written line by line.
        with job.log.open("a", encoding="utf-8", errors="replace", buffering=1) as log:
            trt = flavour.load()
            plan_bytes, targets = build_plan(flavour, trt, job, log, progress)
    except SalaError as error:
        return BuildResult(error_type=type(error).__name__, error=str(error))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        message = f"the engine cannot be written to {job.plan.parent}: {error.strerror}"
        return BuildResult(
            error_type=DiskFullError.__name__, error=f"{message}: free some space or choose another --output"
        )
    return BuildResult(
        tensorrt_version=trt.__version__,
        compute_capabilities=tuple(map(str, targets)),
        plan_bytes=plan_bytes,
        peak_host_bytes=peak_resident_bytes(),
    )


def die_with_parent(parent: int) -> None:
    """Make the operating system kill this process when its parent ends in any way."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent process has ended")


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far.

    It is not from getrusage, whose figure survives exec, so that a large parent would be counted.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise OSError("/proc/self/status has no line VmHWM")
    return int(match[1]) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
