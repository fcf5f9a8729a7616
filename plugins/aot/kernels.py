"""Compiles the Triton kernels of an operator ahead of time; needs neither a GPU nor torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sala_export.ops.common.contract import ACTIVATION, Contract
from sala_export.ops.common.launch import DEPENDENT, KernelSet, Launch
from sala_export.ops.common.targets import ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS

from .cpp import AotError

_TRITON_TYPES: Mapping[str, str] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8e4nv",
    "int8": "i8",
    "int32": "i32",
}
_POINTER_DIVISOR = 16
"""What kernels may assume of every address; `kPointerDivisor` of the launcher checks it."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class CompileJob:
    """One cubin to make. Plain values, so that worker processes can be handed one, in an order that a build repeats."""

    operator: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    """Parameter names with Triton types; `constexpr` for compile-time constants."""
    constexprs: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int
    sm: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledKernel:
    """A cubin with what a launch needs to know of it."""

    cubin: bytes
    threads: int
    """Per block."""
    shared_bytes: int
    """Dynamic shared memory per block."""
    hidden_pointers: int
    """Pointers that Triton adds after the declared parameters; they may be null."""
    runs_alone: bool
    """True if the code runs on exactly one architecture: its PTX target is `sm_<n>a`, or a Tegra."""
    is_dependent: bool
    """True if the code waits for earlier launches, so that a launch may begin before they have ended."""


def declared_parameters(launch: Launch) -> list[str]:
    """Names of the parameters that a launch passes, in order; compile-time constants left out."""
    return [p.name for p in _parameters(launch) if not p.is_constexpr]


def compile_job(
    contract: Contract, kernel_set: KernelSet, launch: Launch, *, activation: str, variant: Mapping[str, int], sm: int
) -> CompileJob:
    """The compilation of one launch for one activation type, variant and architecture.

    Raises: AotError if a parameter is neither a tensor, a dimension, an attribute nor a known constant, or if the tile
        sets a constant that the kernel does not take.
    """
    constants = kernel_set.compile_time(launch, sm, variant)
    pointers = {tensor.name: tensor.dtype for tensor in (*contract.inputs, *contract.outputs)}
    pointers |= {workspace.name: workspace.dtype for workspace in (*kernel_set.workspaces, *kernel_set.counters)}
    floats = {a.name for a in contract.attributes if a.type is float}
    integers = {a.name for a in contract.attributes if a.type is int} | set(contract.dims)
    signature: list[tuple[str, str]] = []
    for parameter in _parameters(launch):
        name = parameter.name
        tensor = name.removesuffix("_ptr")
        if parameter.is_constexpr and name in constants:
            kind = "constexpr"
        elif not parameter.is_constexpr and name.endswith("_ptr") and tensor in pointers:
            dtype = pointers[tensor]
            kind = "*" + _TRITON_TYPES[activation if dtype == ACTIVATION else dtype]
        elif not parameter.is_constexpr and name in floats:
            kind = "fp32"
        elif not parameter.is_constexpr and name in integers:
            kind = "i32"
        else:
            raise AotError(
                f"{contract.name}: parameter {name} of {launch.name} is no tensor, dimension, attribute or constant"
            )
        signature.append((name, kind))
    used = {name for name, kind in signature if kind == "constexpr"}
    if unused := launch.tile_constants - used:
        raise AotError(f"{contract.name}: {launch.name} takes no constant {', '.join(sorted(unused))}")
    tile = launch.tiles[sm]
    return CompileJob(
        operator=contract.name,
        kernel=launch.name,
        signature=tuple(signature),
        constexprs=tuple(sorted((name, value) for name, value in constants.items() if name in used)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        sm=sm,
    )


def compile_kernel(job: CompileJob) -> CompiledKernel:
    """Make one cubin.

    Raises: AotError if the kernel needs more shared memory than the architecture has, or features that the launcher
        does not serve, or runs on other architectures than `ARCHITECTURES` says, or if it is dependent and does not
        wait.
    """
    # Line tables would carry the paths of the build machine and a third of the size.
    triton.knobs.compilation.disable_line_info = True
    attributes = {
        (i,): [["tt.divisibility", _POINTER_DIVISOR]] for i, (_, kind) in enumerate(job.signature) if kind[0] == "*"
    }
    source = ASTSource(_kernel(job), dict(job.signature), dict(job.constexprs), attributes)
    # FP fusion is Triton's present default, stated because the default is announced to change.
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", job.sm, 32), options=options)
    _check_launchable(job, compiled.metadata)
    ptx = compiled.asm["ptx"]
    return CompiledKernel(
        cubin=compiled.asm["cubin"],
        threads=int(_ptx_field(job, ptx, r"\.reqntid\s+(\d+)")),
        shared_bytes=compiled.metadata.shared,
        hidden_pointers=_hidden_pointers(job, ptx),
        runs_alone=_runs_alone(job, ptx),
        is_dependent=_is_dependent(job, ptx),
    )


def _check_launchable(job: CompileJob, metadata: Any) -> None:
    limit = ARCHITECTURES[job.sm].shared_limit_bytes
    if metadata.shared > limit:
        raise AotError(
            f"{job.kernel}: {dict(job.constexprs)} needs {metadata.shared} bytes of shared memory, "
            f"sm_{job.sm} has {limit}: use smaller tiles or fewer stages"
        )
    needs = {
        "global scratch memory": metadata.global_scratch_size,
        "profile scratch memory": metadata.profile_scratch_size,
        "a cooperative grid": metadata.launch_cooperative_grid,
        "clusters": metadata.num_ctas - 1,
    }
    if unserved := [what for what, need in needs.items() if need]:
        raise AotError(f"{job.kernel}: needs {', '.join(unserved)}, which the launcher does not serve")


def _hidden_pointers(job: CompileJob, ptx: str) -> int:
    """Parameters of the compiled kernel beyond the declared ones, which must be the first, in order."""
    entry = _ptx_field(job, ptx, rf"\.entry\s+{job.kernel}\s*\((.*?)\)")
    widths = [int(width) for width in re.findall(r"\.param\s+\.[a-z](\d+)", entry)]
    declared = [64 if kind[0] == "*" else 32 for _, kind in job.signature if kind != "constexpr"]
    hidden = widths[len(declared) :]
    if widths[: len(declared)] != declared or any(width != 64 for width in hidden):
        raise AotError(f"{job.kernel}: compiled parameters of {widths} bits, declared {declared}, then pointers")
    return len(hidden)


def _runs_alone(job: CompileJob, ptx: str) -> bool:
    target = _ptx_field(job, ptx, r"\.target\s+(\w+)")
    architecture = ARCHITECTURES[job.sm]
    if target.endswith("a") != architecture.is_arch_specific:
        raise AotError(f"{job.kernel}: Triton {triton.__version__} compiled for {target}, ARCHITECTURES says otherwise")
    return architecture.runs_alone


def _is_dependent(job: CompileJob, ptx: str) -> bool:
    waits = "griddepcontrol.wait" in ptx
    if waits != bool(dict(job.constexprs).get(DEPENDENT)):
        raise AotError(f"{job.kernel}: dependent launches wait for earlier ones, and no others do (launch.py)")
    return waits


def _ptx_field(job: CompileJob, ptx: str, pattern: str) -> str:
    match = re.search(pattern, ptx, re.DOTALL)
    if match is None:
        raise AotError(f"{job.kernel}: PTX of Triton {triton.__version__} lacks {pattern}")
    return match[1]


def _kernel(job: CompileJob) -> Any:
    return next(x.kernel for x in KERNEL_SETS[job.operator].launches if x.name == job.kernel)


def _parameters(launch: Launch) -> Sequence[Any]:
    parameters: Sequence[Any] = launch.kernel.params  # type: ignore[attr-defined]
    return parameters
