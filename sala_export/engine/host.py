"""Whether this machine has the memory and the disk space for a build."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import RequestError
from ..specs import format_bytes

_PEAK_PER_WEIGHT_BYTE = 2.1
"""Measured with TensorRT for RTX 1.7.1.116: 3.32 GiB for 1.60 GiB of bf16 weights in three layers of 9B sizes, with
0.06 GiB of it there before any weight. The mapped weight files, 1.60 GiB more, are dropped under pressure."""

_FIXED_HOST_BYTES = 1 << 30
"""Python, TensorRT's libraries and a small graph: 0.25 GiB measured, rounded up."""

_FIXED_PLAN_BYTES = 64 << 20
"""Room for what is not weights: kernels, graph, plugin library, log. 2 MiB seen with an empty plugin library."""


def required_host_bytes(weights_bytes: int) -> int:
    """Memory that a build takes, in bytes.

    TensorRT holds two copies of the constants at its peak, besides the mapped files that they come from.
    """
    return int(weights_bytes * _PEAK_PER_WEIGHT_BYTE) + _FIXED_HOST_BYTES


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


def check_host(weights_bytes: int, plan_path: Path) -> None:
    """Refuse a build that this machine has no room for.

    Raises: RequestError saying what is needed and what there is.
    """
    needed, available = required_host_bytes(weights_bytes), available_host_bytes()
    if needed > available:
        raise RequestError(
            f"building the engine needs about {format_bytes(needed)} of memory, {format_bytes(available)} are "
            "available: use --layers or a machine with more memory"
        )
    needed, free = weights_bytes + _FIXED_PLAN_BYTES, shutil.disk_usage(plan_path.parent).free
    if needed > free:
        raise RequestError(
            f"{plan_path.parent} has {format_bytes(free)} free, the engine takes about {format_bytes(needed)}: "
            "free some space or choose another --output"
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
