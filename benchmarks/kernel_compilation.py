"""Compiles every kernel as Python's launcher would ask for it, for any GPU and without one.

python -m benchmarks.kernel_compilation [--sm 90] [--dtype float32] [--head-dim 128] [--processes 2]

Prints what each launch needs, and exits with 1 if one does not compile, does not fit, or has a known fault. How Python
passes a kernel its arguments is not how the build compiles it ahead of time, and float32 is not shipped: both would
fail on the first GPU only. `prewarm_jobs` and `compile_one` fill Triton's cache before launches need it.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.errors import TritonError
from triton.runtime.driver import driver

from benchmarks.kernel_cases import LIGHTNING, LIGHTNING_SIZES, SPARSE, SPARSE_SIZES, Case, published_cases
from benchmarks.kernel_ways import SM80_PATH
from sala_export.errors import UnsupportedError
from sala_export.kernel_report.cubin import read_cubin
from sala_export.kernel_report.disassembly import disassemble
from sala_export.kernel_report.in_place import racing_tiles
from sala_export.kernel_report.warp_groups import overwritten_operands
from sala_export.ops.common.contract import ACTIVATION
from sala_export.ops.common.expr import evaluate
from sala_export.ops.common.launch import KernelSet
from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES
from sala_export.ops.common.triton_run import BoundLaunch, bind_kernels
from sala_export.torch_runtime import elementwise_kernels

DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (32, 64, 128)
ROW_WIDTHS = ((48, 80), (256, 512), (4096, 16384))
"""Hidden and intermediate size: of the tests' small models, of the presets `tiny` and `9b`."""

DISJOINT = {
    ("infllmv2_append_kernel", "k_cache_ptr"): "rows before past_length are loaded, rows from it on are stored",
    ("infllmv2_decode_normalise_kernel", "k_cache_ptr"): "rows before past_length are loaded, that row is stored",
    ("infllmv2_decode_normalise_kernel", "k2_cache_ptr"): "keys before the token's are loaded, its own is stored",
    ("infllmv2_decode_attend_kernel", "chosen_ptr"): "what is loaded after the barrier is not stored after it",
    ("infllmv2_select_kernel", "block_scores_ptr"): "a maximum taken again of what is stored already is the same",
    **{
        ("infllmv2_select_kernel", name): "a barrier stands between loads and stores, whichever come first"
        for name in ("chosen_ptr", "log_sum_ptr", "survivors_ptr")
    },
    ("lightning_decode_kernel", "gated_ptr"): "loaded when all programs have stored, which they count",
    ("lightning_decode_kernel", "squares_ptr"): "loaded when all programs have stored, which they count",
}
"""Arguments that are loaded and stored, but never stored where a thread has yet to load what was there and needs it."""

Value = str | int | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One launch without tensors: all that Triton compiles for, as plain values that a process can be handed."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, Value], ...]
    """By name: a constant, or the type of what is passed: `*` with the element type of a tensor, `int` or `float`."""
    options: tuple[tuple[str, Value], ...]

    @property
    def title(self) -> str:
        """The kernel with its types and constants."""
        types = {value.removeprefix("*") for _, value in self.arguments if str(value).startswith("*")} & set(DTYPES[:2])
        constants = [f"{name}={value}" for name, value in self.arguments if not isinstance(value, str)]
        return " ".join([self.kernel, *(types or {"float32"}), *constants])


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What came of one job on one architecture."""

    job: Job
    sm: int
    shared_bytes: int = 0
    registers: int = 0
    stack_bytes: int = 0
    spill_instructions: int = 0
    problem: str | None = None
    """Why it must not run; spills alone are none."""


class NamedGpu:
    """As much of Triton's driver as compilation needs. Its device has the number of its architecture."""

    def __init__(self, sm: int) -> None:
        self._sm = sm

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._sm, 32)

    def get_current_device(self) -> int:
        return self._sm

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_jobs(
    sm: int,
    *,
    dtypes: Sequence[str] = DTYPES,
    head_dims: Sequence[int] = HEAD_DIMS,
    row_widths: Sequence[tuple[int, int]] = ROW_WIDTHS,
) -> list[Job]:
    """Every launch of the operators and of the torch runtime that a GPU serves; what the library refuses is left out.

    Args: `sm`, the architecture of the GPU; types, head sizes, and pairs of hidden and intermediate sizes.
    """
    jobs: list[Job] = []
    for dtype in dtypes:
        for head_dim, (operator, sizes) in product(head_dims, ((LIGHTNING, LIGHTNING_SIZES), (SPARSE, SPARSE_SIZES))):
            for tokens in (8192, 1):
                case = Case(name="", operator=operator, tokens=tokens, attributes={**sizes, "head_dim": head_dim})
                try:
                    jobs += operator_jobs(case, dtype, sm)
                except UnsupportedError:
                    continue
        for hidden, intermediate in row_widths:
            jobs += elementwise_jobs(hidden, intermediate, dtype)
    if DTYPES[0] in dtypes:
        jobs += block_scaled_jobs(sm)
    return list(dict.fromkeys(jobs))


def block_scaled_jobs(sm: int) -> list[Job]:
    """The launches of the block-scaled operators, in bfloat16, on a GPU that has them; none on another one."""
    widths = {"K": 4096, "N": 4096}
    kinds: tuple[tuple[str, dict[str, int | float], dict[str, int]], ...] = (
        ("rms_norm_block_quantize", {"columns": 4096, "eps": 1e-6}, {}),
        ("block_quantize", {"columns": 4096, "gated": 0}, {}),
        ("block_quantize", {"columns": 16384, "gated": 1}, {}),
        ("block_scaled_linear", {}, widths),
        ("block_scaled_linear_add", {"factor": 0.5}, widths),
    )
    jobs: list[Job] = []
    for (operator, attributes, extents), tokens in product(kinds, (8192, 1)):
        case = Case(name="", operator=operator, tokens=tokens, attributes=attributes, widths=extents)
        if sm in case.kernel_set.architectures:
            jobs += operator_jobs(case, DTYPES[0], sm)
    return jobs


def prewarm_jobs(sm: int) -> list[Job]:
    """All that a GPU launches at the published sizes: gate and measurements in both 16-bit types, also with the tiles
    of SM86, and the torch runtime of the `9b` preset in bfloat16."""
    kinds = product(DTYPES[:2], dict.fromkeys((sm, SM80_PATH)), published_cases())
    jobs = [job for dtype, tiles, case in kinds for job in operator_jobs(case, dtype, sm, tiles)]
    return list(dict.fromkeys([*jobs, *elementwise_jobs(*ROW_WIDTHS[-1], DTYPES[0])]))


def operator_jobs(
    case: Case, dtype: str, sm: int, tiles: int | None = None, kernel_set: KernelSet | None = None
) -> list[Job]:
    """The launches of one call, on a GPU of architecture `sm` with its own tiles or those of another one.

    Args: `kernel_set`, by default that of the operator.
    Raises: UnsupportedError if the kernels do not serve the sizes there.
    """
    tiles, kernel_set = tiles or sm, kernel_set or case.kernel_set
    call = bind_kernels(case.contract, kernel_set, meta_inputs(case, dtype), case.attributes, sm=tiles)
    # `bind_kernels` cannot know which GPU is meant: as it does where tiles are not the GPU's own.
    arch = {} if tiles == sm else {"arch": f"sm{tiles}"}
    return [_job_of_launch(bound, arch) for bound in call.launches]


def meta_inputs(case: Case, dtype: str) -> list[Tensor]:
    """Inputs of a call that have a shape and a type, but no content."""
    names = {**case.kernel_set.constants, **case.sizes}
    return [
        torch.empty(
            [evaluate(extent, names) for extent in tensor.shape],
            dtype=getattr(torch, dtype if tensor.dtype == ACTIVATION else tensor.dtype),
            device="meta",
        )
        for tensor in case.contract.inputs
    ]


def _job_of_launch(bound: BoundLaunch, arch: Mapping[str, str]) -> Job:
    options = {name: value for name, value in bound.options.items() if name != "arch"}
    return _job(bound.launch.kernel, bound.arguments, {**options, **arch})


def elementwise_jobs(hidden: int, intermediate: int, dtype: str) -> list[Job]:
    """The launches of the torch runtime beside operators and matrix products, for rows of these sizes."""
    norm = elementwise_kernels.norm_options(hidden)
    gate = elementwise_kernels.gate_options(intermediate)
    rows = f"*{dtype}"
    added = {"hidden_ptr": rows, "delta_ptr": rows, "weight_ptr": rows, "scale": "float", "eps": "float"}
    gated = {"gate_up_ptr": rows, "scale": "float"}
    return [
        *(_job(elementwise_kernels.add_norm_kernel, added | {"ADDS": adds} | norm, {}) for adds in (False, True)),
        _job(elementwise_kernels.gated_product_kernel, gated | gate, {}),
    ]


def _job(kernel: Any, arguments: Mapping[str, Any], options: Mapping[str, Value]) -> Job:
    """Numbers that are no constants of the kernel count by type alone."""
    constants = {p.name for p in kernel.params if p.is_constexpr}

    def value(name: str, x: Any) -> Value:
        if isinstance(x, Tensor):
            return f"*{x.dtype}".replace("torch.", "")
        return x if name in constants or isinstance(x, str) else type(x).__name__

    names = [p.name for p in kernel.params]
    more = {name: x for name, x in arguments.items() if name not in names}
    return Job(
        module=kernel.fn.__module__,
        kernel=kernel.fn.__name__,
        arguments=tuple((name, value(name, arguments[name])) for name in names),
        options=tuple({**options, **more}.items()),
    )


def compile_one(job: Job, sm: int) -> Any:
    """Triton's compiled kernel of a job, from its cache or put there, under the key that the launch will look for.

    From then on Triton takes this process for one with a GPU of architecture `sm`: it can launch nothing any more.
    """
    driver.set_active(NamedGpu(sm))
    kernel = getattr(importlib.import_module(job.module), job.kernel)
    arguments = {name: _argument(value) for name, value in job.arguments}
    return kernel.warmup(**arguments, **dict(job.options), grid=(1,))


def _argument(value: Value) -> Any:
    if isinstance(value, str) and value.startswith("*"):
        return torch.empty(1, dtype=getattr(torch, value[1:]), device="meta")
    return {"int": 2, "float": 0.5}.get(value, value) if isinstance(value, str) else value


def examine(job: Job, sm: int) -> Finding:
    """Compile one job and look for what a GPU would trip over."""
    try:
        compiled = compile_one(job, sm)
    except (TritonError, RuntimeError) as error:
        return Finding(job=job, sm=sm, problem=f"does not compile: {_reason(error)}")
    cubin = compiled.asm["cubin"]
    facts = read_cubin(cubin, sm)
    shared, limit = compiled.metadata.shared, ARCHITECTURES[sm].shared_limit_bytes
    racing = [
        tile for tile in racing_tiles(compiled.asm["ttgir"]) if (job.kernel, tile.partition(":")[0]) not in DISJOINT
    ]
    problems = [
        *([f"needs {shared} bytes of shared memory, SM{sm} has {limit}"] if shared > limit else []),
        *(f"more threads than elements: {tile}" for tile in racing),
        *overwritten_operands(disassemble(cubin)),
    ]
    return Finding(
        job=job,
        sm=sm,
        shared_bytes=shared,
        registers=facts.registers,
        stack_bytes=facts.stack_bytes,
        spill_instructions=facts.spill_instructions,
        problem="; ".join(problems) or None,
    )


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error of Triton, which quotes the kernels on the way there."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[-300:]


def examine_all(jobs: Iterable[tuple[Job, int]], processes: int) -> Iterator[Finding]:
    """Findings in order, by so many processes of their own."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(examine, *zip(*jobs, strict=True))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; exits with 2 if they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_compilation", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sm",
        type=int,
        action="append",
        choices=tuple(ARCHITECTURES),
        help="architectures to compile for (default: those of a plugin library)",
    )
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="activation types to compile for (default: all)"
    )
    parser.add_argument(
        "--head-dim", type=int, action="append", choices=HEAD_DIMS, help="head sizes to compile for (default: all)"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="compilations at a time (default: one for each core)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if a launch must not run."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    jobs = [
        (job, sm)
        for sm in options.sm or AOT_ARCHITECTURES
        for job in compile_jobs(sm, dtypes=options.dtype or DTYPES, head_dims=options.head_dim or HEAD_DIMS)
    ]
    print(f"Triton {triton.__version__}: {len(jobs)} launches")
    bad = 0
    for found in examine_all(jobs, options.processes):
        spills = f", {found.stack_bytes} B of stack, {found.spill_instructions} spills" if found.stack_bytes else ""
        needs = f"{found.registers} registers, {found.shared_bytes} B shared{spills}"
        print(f"SM{found.sm} {found.job.title}: {found.problem or needs}", flush=True)
        bad += found.problem is not None
    print(f"{len(jobs) - bad} can run, {bad} cannot")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
