"""What the parent tells the worker process, and what it answers: two JSON files and lines of progress on a pipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from .profiles import Profile
from .request import FlavourName


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildJob:
    """One build, with nothing left to decide. Paths are absolute."""

    flavour: FlavourName
    compute_capability: str
    graph: Path
    plan: Path
    log: Path
    profiles: tuple[Profile, ...]
    plugin_library: Path | None
    """None for a graph without this project's operators."""
    serialize_library: bool
    """Put the plugin library into the plan."""

    def write(self, path: Path) -> None:
        path.write_bytes(_JOB.dump_json(self))

    @classmethod
    def read(cls, path: Path) -> BuildJob:
        return _JOB.validate_json(path.read_bytes())


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """How a build ended, unless the process died."""

    tensorrt_version: str = ""
    compute_capability: str = ""
    """Read back from TensorRT after the build."""
    plan_bytes: int = 0
    peak_host_bytes: int = 0
    error_type: str = ""
    """Class of `sala_export.errors`; empty after success."""
    error: str = ""

    def write(self, path: Path) -> None:
        path.write_bytes(_RESULT.dump_json(self))

    @classmethod
    def read(cls, path: Path) -> BuildResult:
        return _RESULT.validate_json(path.read_bytes())


_JOB = TypeAdapter(BuildJob)
_RESULT = TypeAdapter(BuildResult)


def progress_line(phase: str, done: int, total: int) -> str:
    """One line of the progress pipe."""
    return json.dumps([phase, done, total]) + "\n"


def read_progress_line(line: str) -> tuple[str, int, int]:
    """Phase, steps done, steps in all."""
    phase, done, total = json.loads(line)
    return str(phase), int(done), int(total)
