"""Describes the machine of a measurement: processor, GPU with driver and clocks, the state of the sources."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .installation import VERSION

_GPU_FIELDS = {
    "name": "name",
    "uuid": "uuid",
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "most_sm_clock_mhz": "clocks.max.sm",
    "power_limit_watts": "power.limit",
    "temperature_celsius": "temperature.gpu",
    "memory_mib": "memory.total",
    "used_mib": "memory.used",
    "compute_capability": "compute_cap",
}
"""Of nvidia-smi, by our name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Facts about a machine that belong beside every number measured on it."""

    processor: str
    cores: int | None
    system: str
    python: str
    sala_export: str
    commit: str | None
    """Commit of the checkout, with `-dirty` if files differ from it. None outside of a checkout."""
    gpus: tuple[Mapping[str, str], ...]
    """Every GPU, with all fields of `_GPU_FIELDS` as text, as nvidia-smi reports them. Empty without a driver."""


def describe_machine() -> Machine:
    """Describe this machine, with its GPUs' clocks as they are now. Call it after a measurement."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count(),
        system=platform.platform(),
        python=platform.python_version(),
        sala_export=VERSION,
        commit=_commit(),
        gpus=gpus(),
    )


def gpus() -> tuple[Mapping[str, str], ...]:
    """Ask nvidia-smi about every GPU, in its order. Empty if there is none."""
    found = _output(["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS.values())}", "--format=csv,noheader,nounits"])
    rows = [line.split(", ") for line in (found or "").splitlines()]
    return tuple(dict(zip(_GPU_FIELDS, row, strict=True)) for row in rows if len(row) == len(_GPU_FIELDS))


class GpuMemory:
    """Device memory that this process takes, on all GPUs, from now on. Keep other programs quiet meanwhile."""

    def __init__(self) -> None:
        self._before = _used_bytes()

    def taken_bytes(self) -> int | None:
        """Bytes taken so far by weights, caches and the CUDA context. None without a GPU.

        Engines keep their memory while a session lives, so this is a peak if you ask before the session ends.
        """
        now = _used_bytes()
        return None if self._before is None or now is None else now - self._before


def peak_host_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_json(machine: Machine) -> dict[str, Any]:
    """Return the machine as plain JSON values."""
    told = {name: getattr(machine, name) for name in machine.__slots__}
    return {**told, "gpus": [dict(gpu) for gpu in machine.gpus]}


def _used_bytes() -> int | None:
    used = [gpu["used_mib"] for gpu in gpus()]
    return sum(int(mib) for mib in used) * 2**20 if used and all(mib.isdecimal() for mib in used) else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    folder = Path(__file__).parent
    told = _output(["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"])
    # Sources that travelled without their history have that of the pack beside their libraries (scripts/gpu_unpack.sh).
    packed = folder.parent / "lib" / "commit.txt"
    return told or (packed.read_text(encoding="utf-8").strip() if packed.is_file() else None)


def _output(command: list[str]) -> str | None:
    """What a program prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
