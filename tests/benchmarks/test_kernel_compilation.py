"""Every launch compiles as Python asks for it, for every type that it claims, fits its GPU, and has no known fault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from support.documents import ROOT
from support.triton_compiler import call_afresh, call_compiling, compile_ahead, launch_on_an_h100
from triton.runtime.errors import PTXASError

from benchmarks import kernel_compilation
from benchmarks.kernel_cases import LIGHTNING, LIGHTNING_SIZES, SPARSE, SPARSE_SIZES, Case, published_cases
from benchmarks.kernel_compilation import (
    DTYPES,
    HEAD_DIMS,
    ROW_WIDTHS,
    Finding,
    Job,
    compile_jobs,
    examine,
    examine_all,
    operator_jobs,
    prewarm_jobs,
)
from benchmarks.kernel_gate import LIGHTNING_TOKENS, sparse_checks
from sala_export.checkpoint.presets import PRESETS
from sala_export.ops.common.launch import unlaunchable_reason
from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS

PROCESSES = 2


def problems(jobs: list[tuple[Job, int]]) -> list[str]:
    found = list(examine_all(jobs, PROCESSES))
    assert len(found) == len(jobs) > 0
    return [f"SM{finding.sm} {finding.job.title}: {finding.problem}" for finding in found if finding.problem]


def test_what_the_build_does_not_compile_compiles() -> None:
    """A share that takes seconds: float32 in one head size, the torch runtime's own kernels, and the published sizes as
    Python's launcher passes them; `test_everything_compiles` is the whole."""
    narrow = [
        (job, sm)
        for sm in AOT_ARCHITECTURES
        for job in compile_jobs(sm, dtypes=["float32"], head_dims=[32], row_widths=[])
    ]
    elementwise = [(job, 90) for job in compile_jobs(90, head_dims=[])]
    published = [(job, 90) for job in compile_jobs(90, dtypes=["bfloat16"], head_dims=[128], row_widths=[])]
    assert problems(narrow + elementwise + published) == []


@pytest.mark.release
@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_everything_compiles(sm: int) -> None:
    assert problems([(job, sm) for job in dict.fromkeys(compile_jobs(sm) + prewarm_jobs(sm))]) == []


@pytest.mark.release
def test_everything_compiles_with_the_oldest_triton(tmp_path: Path) -> None:
    requirement = re.search(r'"triton>=([\d.]+),', (ROOT / "pyproject.toml").read_text().partition("dependencies")[2])
    assert requirement is not None
    version = f"{requirement[1]}.0"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "old")]
    subprocess.run([*pip, f"triton=={version}"], check=True)
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "old", ROOT))),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernel_compilation", "--processes", str(PROCESSES)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.startswith(f"Triton {version}: ")
    assert told.returncode == 0, told.stdout[-1000:] + told.stderr[-1000:]


@pytest.mark.release
@pytest.mark.parametrize(("operator", "sizes"), [(LIGHTNING, LIGHTNING_SIZES), (SPARSE, SPARSE_SIZES)])
@pytest.mark.parametrize("sm", AOT_ARCHITECTURES)
def test_what_is_refused_does_not_fit(operator: str, sizes: dict[str, int | float], sm: int) -> None:
    """The tiles of SM90 are as large as the others, and larger."""
    kernel_set = KERNEL_SETS[operator]
    refused = [
        head_dim
        for head_dim in HEAD_DIMS
        if unlaunchable_reason(kernel_set, {**sizes, "head_dim": head_dim}, "float32", sm)
    ]
    assert bool(refused) == (sm != 90)
    for head_dim in refused:
        case = Case(name="", operator=operator, tokens=8192, attributes={**sizes, "head_dim": head_dim})
        jobs = [(replace(job, options=_of_tile(job, sm)), sm) for job in operator_jobs(case, "float32", 90)]
        assert any("bytes of shared memory" in problem for problem in problems(jobs))


def _of_tile(job: Job, sm: int) -> tuple[tuple[str, int], ...]:
    """The options of a job that are those of another architecture's tile."""
    (tile,) = {
        (launch.tiles[sm].num_warps, launch.tiles[sm].num_stages)
        for kernel_set in KERNEL_SETS.values()
        for launch in kernel_set.prefill
        if launch.name == job.kernel
    }
    return ("num_warps", tile[0]), ("num_stages", tile[1])


def planted(kernel: str, sm: int, *, warps: int = 8, stages: int = 1, **arguments: str | int) -> Finding:
    """What is found in a kernel with a fault; arguments in the order of its parameters."""
    job = Job(
        module="support.kernel_probes",
        kernel=kernel,
        arguments=tuple(arguments.items()),
        options=(("num_warps", warps), ("num_stages", stages)),
    )
    return call_compiling(examine, job, sm)


def test_code_after_an_early_return_is_found() -> None:
    assert planted("returning_early_kernel", 90, x_ptr="*bfloat16", y_ptr="*int32").problem is None
    finding = planted("returning_early_kernel", 90, x_ptr="*float32", y_ptr="*int32")
    assert finding.problem is not None
    assert "Cannot bitcast data-type of size 32 to" in finding.problem


def test_row_in_place_with_fewer_elements_than_threads_is_found() -> None:
    row = {"hidden_ptr": "*float32", "delta_ptr": "*float32"}
    finding = planted("racing_norm_kernel", 120, warps=8, **row, BLOCK=64)
    assert finding.problem is not None
    assert "more threads than elements: hidden_ptr: store of 64" in finding.problem
    assert planted("racing_norm_kernel", 120, warps=2, **row, BLOCK=64).problem is None


def test_tile_larger_than_the_shared_memory_is_found() -> None:
    arguments = {"qkvz_ptr": "*bfloat16", "y_ptr": "*bfloat16", "T": "int", "BLOCK": 64}
    assert planted("deep_pipeline_kernel", 90, warps=4, stages=9, **arguments).problem is None
    finding = planted("deep_pipeline_kernel", 86, warps=4, stages=9, **arguments)
    assert finding.problem is not None
    assert "bytes of shared memory, SM86 has 101376" in finding.problem


def test_float32_is_refused_where_its_tiles_do_not_fit() -> None:
    reason = unlaunchable_reason(KERNEL_SETS[SPARSE], SPARSE_SIZES, "float32", 120)
    assert reason is not None
    assert "head_dim is 128, in float32 the shared memory of SM120 holds the tiles of 32 at most: choose bf16" in reason
    assert unlaunchable_reason(KERNEL_SETS[SPARSE], SPARSE_SIZES, "float32", 90) is None
    assert unlaunchable_reason(KERNEL_SETS[SPARSE], SPARSE_SIZES, "bfloat16", 120) is None


@pytest.mark.parametrize("head_dim", [16, 96, 256])
def test_head_sizes_that_no_test_compiles_are_refused(head_dim: int) -> None:
    reason = unlaunchable_reason(KERNEL_SETS[LIGHTNING], {**LIGHTNING_SIZES, "head_dim": head_dim}, "bfloat16", 90)
    assert reason is not None
    assert f"is {head_dim}, kernels need >= 32" in reason or "head_dim is 32, 64 or 128" in reason


def test_widths_are_those_of_the_presets() -> None:
    sizes = [(PRESETS[name].config.hidden_size, PRESETS[name].config.intermediate_size) for name in ("tiny", "9b")]
    assert list(ROW_WIDTHS[1:]) == sizes


def test_compiling_ahead_leaves_nothing_to_compile(tmp_path: Path) -> None:
    ahead = call_afresh(compile_ahead, tmp_path)
    # One launch with the tiles of either architecture, and three beside them; each has a folder of its own.
    assert len(ahead) >= 2 + 3
    assert call_afresh(launch_on_an_h100, tmp_path) == ahead
    assert len(call_afresh(launch_on_an_h100, tmp_path, "float16") - ahead) >= 2 + 3


@pytest.mark.parametrize("tiles", [90, 86])
def test_all_that_is_measured_and_checked_is_compiled_ahead(tiles: int) -> None:
    known = set(prewarm_jobs(90))
    checked = [
        Case(name="", operator=LIGHTNING, tokens=n, attributes=LIGHTNING_SIZES) for n in LIGHTNING_TOKENS.values()
    ]
    for check in sparse_checks(torch.bfloat16).values():
        sizes = {**SPARSE_SIZES, "dense_len": check.sizes.dense_len}
        assert {name: getattr(check.sizes, name) for name in sizes} == sizes
        past = max(check.past)
        checked.append(Case(name="", operator=SPARSE, tokens=check.tokens, past_length=past, attributes=sizes))
    for case, dtype in product((*published_cases(), *checked), DTYPES[:2]):
        assert set(operator_jobs(case, dtype, 90, tiles)) <= known, case


def test_what_the_assembler_refuses_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is none of Triton's compiler."""

    def refused(job: Job, sm: int) -> None:
        raise PTXASError("cvt.bf16.f16 needs sm_90")

    monkeypatch.setattr(kernel_compilation, "compile_one", refused)
    found = examine(prewarm_jobs(90)[0], 90)
    assert str(found.problem).startswith("does not compile: ")
    assert "cvt.bf16.f16 needs sm_90" in str(found.problem)
