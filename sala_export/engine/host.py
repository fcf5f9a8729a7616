"""Checks that this machine has the memory and the disk space for a build."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiskFullError, RequestError
from ..specs import format_bytes

if TYPE_CHECKING:
    from .graph import EngineGraph

_PEAK_PER_CONSTANT_BYTE = 3.4
_FIXED_HOST_BYTES = 1 << 30
"""Measured with TensorRT for RTX 1.7.1.116, layers of 9B sizes: 0.28 GiB for 4 layers without constants and 0.57 GiB
for 32; 2.03 and 3.76 GiB for 4 and 8 layers of int4, with 0.50 and 1.02 GiB of constants; 2.47 GiB for 32 layers of
nvfp4, with 0.49 GiB."""

_FIXED_PLAN_BYTES = 15 << 20
_PLAN_BYTES_PER_OPERATOR = 1 << 20
"""Of these, 27.4 MB for 32 layers in bf16 with a plugin library that was 2.4 MB smaller, and 3.6 MB of log and report;
now 14.3 MB for four layers and one GPU."""


def host_bytes_needed(constant_bytes: int) -> int:
    """Estimate from above the resident peak of a build with this many bytes of constants, mapped files included."""
    return int(constant_bytes * _PEAK_PER_CONSTANT_BYTE) + _FIXED_HOST_BYTES


def plan_bytes(graph: EngineGraph) -> int:
    """Estimate from above the bytes of a plan, its log and its report."""
    return graph.constant_bytes + _FIXED_PLAN_BYTES + _PLAN_BYTES_PER_OPERATOR * len(graph.operators)


def available_host_bytes() -> int:
    """Bytes that a new process can take without swapping, within the limit of this control group (version 2)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    for group, limit in _memory_limits():
        used = int((group / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        available = min(available, limit - used + int(statistics["inactive_file"]))
    return max(0, available)


def total_host_bytes() -> int:
    """Bytes of memory of this machine, or of the limit of this control group (version 2) if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(limit for _, limit in _memory_limits())])


def check_memory(constant_bytes: int) -> None:
    """Refuse a build with this many bytes of constants if the machine lacks the memory.

    Raises: RequestError with what is needed and what is available.
    """
    needed, available = host_bytes_needed(constant_bytes), available_host_bytes()
    if needed > available:
        raise RequestError(
            f"building the engine needs about {format_bytes(needed)} of memory, {format_bytes(available)} are "
            "available: free some memory, or build on a machine with more"
        )


def check_disk(needed_bytes: int, folder: Path) -> None:
    """Refuse to write this many bytes if the disk has no room for them.

    Raises: DiskFullError with what is needed and what is available.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DiskFullError(
            f"the disk of {folder} has {format_bytes(free)} free, the build takes about {format_bytes(needed_bytes)}: "
            "free some space or choose another --output"
        )


def _memory_limits() -> Iterator[tuple[Path, int]]:
    """The control groups of this process that limit memory, innermost first, and their limits in bytes."""
    group = _control_group()
    while group is not None and (group / "memory.max").is_file():
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            yield group, int(limit)
        group = group.parent


def _control_group() -> Path | None:
    """Folder of this process's control group, or None where version 2 is not mounted at its usual place."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").is_file():
        return None
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return root / line[3:].lstrip("/")
    return None
