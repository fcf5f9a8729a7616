"""Messages between parent and worker process: a job as JSON on stdin, progress and result as JSON lines on a pipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from ..specs import FlavourName
from .profiles import Profile


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildJob:
    """One build, with nothing left to decide. Paths are absolute."""

    flavour: FlavourName
    compute_capabilities: tuple[str, ...]
    graph: Path
    plan: Path
    log: Path
    profiles: tuple[Profile, ...]
    plugin_library: Path | None
    """Plugin library that becomes part of the plan. None for a graph without this project's operators."""

    def to_json(self) -> bytes:
        return _JOB.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> BuildJob:
        return _JOB.validate_json(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """The end of a build in a process that did not die."""

    tensorrt_version: str = ""
    compute_capabilities: tuple[str, ...] = ()
    """Compute capabilities that TensorRT states after the build."""
    plan_bytes: int = 0
    peak_host_bytes: int = 0
    error_type: str = ""
    """Name of a class in `sala_export.errors`. Empty after success."""
    error: str = ""


_JOB = TypeAdapter(BuildJob)
_RESULT = TypeAdapter(BuildResult)


def progress_line(phase: str, done: int, total: int) -> str:
    """Make a line of the pipe that says how far the build is."""
    return json.dumps([phase, done, total]) + "\n"


def result_line(result: BuildResult) -> str:
    """Make the last line of the pipe."""
    return _RESULT.dump_json(result).decode() + "\n"


def read_line(line: str) -> tuple[str, int, int] | BuildResult:
    """Read a line of the pipe: phase, steps done and steps in all, or else the result."""
    if line.startswith("{"):
        return _RESULT.validate_json(line)
    phase, done, total = json.loads(line)
    return str(phase), int(done), int(total)
