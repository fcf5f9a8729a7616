"""What a machine without a GPU can do: its memory, its bandwidth, and the rates of its products.

Bandwidth and the rate in float32 are measured in about a second, by loops of NumPy on all cores. The other rates follow
from that one and from the instructions that the operators use.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ..engine.host import total_host_bytes
from ..installation import onnxruntime_operators


class Source(StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured here"
    GIVEN = "given"
    PREDICTED = "predicted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A number and where it comes from."""

    value: float
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuMachine:
    """What decides how fast a model runs on a CPU."""

    cores: int
    simd_level: str
    """Instructions that the operators use, as `sala_ort_simd_level` names them."""
    memory_bytes: Figure
    bytes_per_second: Figure
    """Rate at which all cores together read memory."""
    operations_per_second: Mapping[str, Figure]
    """Rates of products by the type of what is multiplied: `float32`, `bfloat16` and `int8`, and `bfloat16_attention`.
    Two operations make a multiply-add."""


RELATIVE_RATES: Mapping[str, tuple[float, float]] = {
    "amx": (5.9, 8.1),
    "avx512_bf16": (2.0, 4.0),
    "avx512": (1.0, 4 / 3),
    "avx2_vnni": (1.0, 4.0),
    "avx2": (1.0, 4 / 3),
    "baseline": (1.0, 1.0),
    "neon_matrix": (4.0, 8.0),
    "neon_dot": (1.0, 4.0),
}
"""Rates of bfloat16 and of int8 beside that of float32, by the instructions of one product: a pair of bfloat16 or four
int8 in a lane, three instructions for four int8, or products of matrices. The baseline computes all in float32.
The tiles of AMX were measured, two cores of an Intel Sapphire Rapids, 512 tokens: 1,429 GFLOP/s in bfloat16 and 1,967
in int8 beside 243 in float32 (`python -m benchmarks.cpu_linear`)."""
_ATTENTION_RATES: Mapping[str, float] = {"avx512_bf16": 2.0}
"""The same of bfloat16 in attention, where it is not 1: matrices and tiles are not used there, and Intel's instruction
for a pair takes as long as two for one number (assumed)."""

_READ_BYTES = 256 << 20
"""More than the caches of a processor hold."""
_GEMM_SIZE = 1536
_REPEATS = 4


def this_machine(memory_bytes: int | None = None, bytes_per_second: float | None = None) -> CpuMachine:
    """Describe this machine, or one like it with another memory, by measuring what is not given.

    Args: `memory_bytes` and `bytes_per_second` take the place of what this machine has.
    Raises: BuildError if the package was not installed, only its sources found.
    """
    level = _simd_level()
    return CpuMachine(
        cores=_cores(),
        simd_level=level,
        memory_bytes=_figure(memory_bytes, total_host_bytes),
        bytes_per_second=_figure(bytes_per_second, _read_rate),
        operations_per_second=rates(_product_rate(), level),
    )


def rates(float32: float, simd_level: str) -> Mapping[str, Figure]:
    """Rates by type, from the measured one of float32, for a level of RELATIVE_RATES."""
    bfloat16, int8 = RELATIVE_RATES[simd_level]
    attention = _ATTENTION_RATES.get(simd_level, 1.0)
    return {
        "float32": Figure(value=float32, source=Source.MEASURED),
        "bfloat16": Figure(value=bfloat16 * float32, source=Source.PREDICTED),
        "bfloat16_attention": Figure(value=attention * float32, source=Source.PREDICTED),
        "int8": Figure(value=int8 * float32, source=Source.PREDICTED),
    }


def _figure(given: float | None, measure: Callable[[], float]) -> Figure:
    if given is not None:
        return Figure(value=given, source=Source.GIVEN)
    return Figure(value=measure(), source=Source.MEASURED)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _simd_level() -> str:
    library = ctypes.CDLL(str(onnxruntime_operators()))
    library.sala_ort_simd_level.restype = ctypes.c_char_p
    level: bytes = library.sala_ort_simd_level()
    return level.decode()


def _read_rate() -> float:
    """Bytes that all cores read from memory in a second."""
    with reader([memory(_READ_BYTES)], _cores()) as read:
        return _READ_BYTES / _shortest(read)


def memory(size: int) -> NDArray[np.float32]:
    """So many bytes, a multiple of 4, to read."""
    return np.ones(size // 4, np.float32)


@contextmanager
def reader(arrays: Sequence[NDArray[np.float32]], threads: int) -> Iterator[Callable[[], object]]:
    """A function that reads arrays [numbers] one after another, each on so many threads."""
    parts = [np.array_split(array, threads) for array in arrays]
    with ThreadPoolExecutor(threads) as pool:
        yield lambda: [list(pool.map(np.max, part)) for part in parts]


def _product_rate() -> float:
    """Operations of a second in products of float32 matrices, on all cores."""
    a, b = np.ones((2, _GEMM_SIZE, _GEMM_SIZE), np.float32)
    out = np.empty_like(a)
    return 2 * _GEMM_SIZE**3 / _shortest(lambda: np.matmul(a, b, out=out))


def _shortest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, since other programs can only make them slower."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
