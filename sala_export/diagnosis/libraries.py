"""The libraries that runtimes need, each asked in a process of its own, and the GPUs that the driver tells of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..installation import wheel_library

_PROBE = Path(__file__).with_name("probe.py")
_SECONDS = 60
"""More than a library takes to load from a slow disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, as the CUDA driver describes it."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """What a library tells when it is loaded."""

    title: str
    version: str | None = None
    path: str | None = None
    problem: str | None = None
    """Why it cannot be used. None if it can."""
    gpus: tuple[Gpu, ...] = ()
    """Only of the driver."""
    has_gpu: bool = False
    """Only of PyTorch: it finds a GPU."""
    simd_level: str | None = None
    """Only of our operators on the CPU: the instructions that they use here."""

    @property
    def works(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Libraries:
    """Everything that the runtimes load."""

    native: Library
    """The C++ runtime in this package."""
    driver: Library
    tensorrt_rtx: Library
    tensorrt: Library
    onnxruntime: Library
    operators: Library
    """Our operators on the CPU."""
    torch: Library

    def all(self) -> tuple[Library, ...]:
        """All of them, in the order of a report."""
        return self.native, self.driver, self.tensorrt_rtx, self.tensorrt, self.onnxruntime, self.operators, self.torch


def find_libraries() -> Libraries:
    """Load every library in a process of its own, all at once. It takes as long as the slowest, usually PyTorch."""
    wanted: Mapping[str, tuple[str, str, Sequence[str]]] = {
        "native": ("sala-export runtime", "native", ()),
        "driver": ("NVIDIA driver (CUDA)", "cuda", ("libcuda.so.1",)),
        "tensorrt_rtx": ("TensorRT for RTX", "tensorrt", _places("tensorrt_rtx_libs", ".", "libtensorrt_rtx.so.1")),
        "tensorrt": ("TensorRT", "tensorrt", _places("tensorrt_libs", ".", "libnvinfer.so.10")),
        "onnxruntime": ("ONNX Runtime", "onnxruntime", _places("onnxruntime", "capi", "libonnxruntime.so.1")),
        "operators": ("operators on the CPU", "operators", ()),
        "torch": ("PyTorch", "torch", ()),
    }
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = pool.map(lambda each: _probed(*each), wanted.values())
        return Libraries(**dict(zip(wanted, found, strict=True)))


def _places(package: str, folder: str, name: str) -> Sequence[str]:
    """Where the C++ runtime looks for a library: in its Python package, and where the system looks."""
    inside = wheel_library(package, folder, name)
    return [*([] if inside is None else [str(inside)]), name]


def _probed(title: str, kind: str, candidates: Sequence[str]) -> Library:
    # -I: neither this folder nor the user's may hide a module.
    command = [sys.executable, "-I", str(_PROBE), kind, *candidates]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return Library(title=title, problem=f"it does not load within {_SECONDS} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        ending = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        return Library(title=title, problem=f"a process that loads it ends with {ending}{': ' if last else ''}{last}")
    told: dict[str, Any] = json.loads(done.stdout)
    gpus = tuple(Gpu(**gpu) for gpu in told.pop("gpus", ()))
    return Library(title=title, gpus=gpus, **told)
