"""What Triton's own launcher would compile for a GPU, without one, in processes of their own."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch
from triton.runtime.driver import driver

from benchmarks.kernel_cases import LIGHTNING, LIGHTNING_SIZES, Case
from benchmarks.kernel_compilation import Job, NamedGpu, compile_one, elementwise_jobs, meta_inputs, operator_jobs
from sala_export.checkpoint.presets import PRESETS
from sala_export.model.layers import RMSNorm
from sala_export.ops.common import triton_run
from sala_export.specs import Precision
from sala_export.torch_runtime.kernel_operators import KernelOperators

Returned = TypeVar("Returned")

ONE_TOKEN = Case(name="one token", operator=LIGHTNING, tokens=1, attributes=LIGHTNING_SIZES)
DTYPE = "bfloat16"
TILES = (90, 86)
"""An H100's own, and those of GPUs without warp groups."""


def call_compiling(function: Callable[..., Returned], *arguments: object) -> Returned:
    """Call a function of some module in a process whose Triton may take itself for one with a GPU."""
    return _worker().submit(function, *arguments).result()


def call_afresh(function: Callable[..., Returned], *arguments: object) -> Returned:
    """The same in a new process, which has compiled nothing yet."""
    with _new_process() as process:
        return process.submit(function, *arguments).result()


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return _new_process()


def _new_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def compiled_ptx(jobs: list[Job], sm: int) -> list[str]:
    """PTX of each job."""
    return [compile_one(job, sm).asm["ptx"] for job in jobs]


def compile_ahead(cache: Path) -> set[str]:
    """Entries of an empty cache after some jobs of an H100: `ONE_TOKEN` with all `TILES`, and what stands beside it."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    jobs = [job for tiles in TILES for job in operator_jobs(ONE_TOKEN, DTYPE, 90, tiles)]
    for job in jobs + elementwise_jobs(4096, 16384, DTYPE):
        compile_one(job, 90)
    return {entry.name for entry in cache.iterdir()}


class _LaunchedError(Exception):
    """Triton has compiled, and wants to launch."""


class _LaunchingGpu(NamedGpu):
    def __getattr__(self, name: str) -> object:
        raise _LaunchedError(name)


def launch_on_an_h100(cache: Path, dtype: str = DTYPE) -> set[str]:
    """Entries of a cache after the same launches, made as on a GPU up to the point where one is needed."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    driver.set_active(_LaunchingGpu(90))
    launches = [*_operator_launches(dtype), *_elementwise_launches(getattr(torch, dtype))]
    for launch in launches:
        try:
            launch()
        except _LaunchedError:
            continue
        raise AssertionError("launched without a GPU")
    return {entry.name for entry in cache.iterdir()}


def _operator_launches(dtype: str) -> Iterator[Callable[[], None]]:
    for tiles in TILES:
        with mock.patch.object(triton_run, "served_architecture", return_value=90):
            call = triton_run.bind_kernels(
                ONE_TOKEN.contract, ONE_TOKEN.kernel_set, meta_inputs(ONE_TOKEN, dtype), ONE_TOKEN.attributes, sm=tiles
            )
        yield from (bound.run for bound in call.launches)


def _elementwise_launches(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    config = PRESETS["9b"].config
    operators = KernelOperators(config, Precision.BF16, torch.device("meta"))
    with torch.device("meta"):
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps).to(dtype)
        rows = torch.empty(1, config.hidden_size, dtype=dtype)
        gates = torch.empty(1, 2 * config.intermediate_size, dtype=dtype)
    yield partial(operators.norm, norm, rows, rows)
    yield partial(operators.add_norm, norm, rows, rows, 0.25)
    yield partial(operators.gated_product, gates)
