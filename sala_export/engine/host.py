"""Whether this machine has the memory and the disk space for a build."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import DiskFullError, RequestError
from ..specs import format_bytes
from .sharding import least_host_bytes

_FIXED_PLAN_BYTES = 64 << 20
"""Room for what is not weights: kernels, graph, plugin library, log. 2 MiB seen with an empty plugin library."""


def host_budget() -> int:
    """Bytes of resident memory that a build takes without being asked: two thirds of what is free.

    The rest stays for the page cache, which the weight files and the plan go through, and for other programs.
    """
    return available_host_bytes() * 2 // 3


def available_host_bytes() -> int:
    """Memory that a new process can take without swapping, within the limit of this control group (version 2)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = _control_group()
    while group is not None and (group / "memory.max").is_file():
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            available = min(available, int(limit) - used + int(statistics["inactive_file"]))
        group = group.parent
    return max(0, available)


def check_memory(weights_bytes: int) -> None:
    """Refuse to build an engine of so many bytes of weights where the process would be killed for want of memory.

    Raises: RequestError saying what is needed and what there is.
    """
    needed, available = least_host_bytes(weights_bytes), available_host_bytes()
    if needed > available:
        raise RequestError(
            f"building the engine needs about {format_bytes(needed)} of memory, {format_bytes(available)} are "
            "available: use more --shards, or a machine with more memory"
        )


def check_disk(weights_bytes: int, shards: int, folder: Path) -> None:
    """Refuse to write plans of so many bytes of weights in all where the disk has no room for them.

    Raises: DiskFullError saying what is needed and what there is.
    """
    needed, free = weights_bytes + shards * _FIXED_PLAN_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"the disk of {folder} has {format_bytes(free)} free, the build takes about {format_bytes(needed)}: free "
            "some space or choose another --output"
        )


def _control_group() -> Path | None:
    """Folder of this process's control group, or None where version 2 is not mounted at its usual place."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").is_file():
        return None
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return root / line[3:].lstrip("/")
    return None
