"""Kernels that cannot be shipped stop the build of the plugins, by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl
from support.kernel_probes import deep_pipeline_kernel

from plugins.aot import compile_kernels, kernels
from plugins.aot.contracts import generated_files
from plugins.aot.cpp import AotError
from plugins.aot.kernels import compile_job, compile_kernel
from plugins.aot.tables import OperatorTables, write_tables
from sala_export.kernel_report.disassembly import disassemble
from sala_export.ops.block_scaled_linear.schema import CONTRACT as BLOCK_SCALED
from sala_export.ops.common.contract import Contract, Tensor
from sala_export.ops.common.dependent import let_next_launch_begin, wait_for_earlier_launches
from sala_export.ops.common.launch import KernelSet, Launch, Tile, Workspace, same_tile
from sala_export.ops.common.targets import ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.lightning_attention.schema import CONTRACT
from sala_export.ops.registry import CONTRACTS


@triton.jit
def scale_kernel(qkvz_ptr, y_ptr, state_ptr, T, scale, head_dim: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(y_ptr + o, tl.load(qkvz_ptr + o, mask=o < T, other=0.0) * scale)


@triton.jit
def waiting_kernel(y_ptr, DEPENDENT: tl.constexpr):
    let_next_launch_begin(DEPENDENT)
    wait_for_earlier_launches(DEPENDENT)
    tl.store(y_ptr, 1.0)


@triton.jit
def impatient_kernel(y_ptr, DEPENDENT: tl.constexpr):
    tl.store(y_ptr, 1.0)


@triton.jit
def unknown_parameter_kernel(y_ptr, speed):
    tl.store(y_ptr, speed)


def _kernel_set(kernel: Any, num_stages: int = 1, *, dependent: bool = False, **constexprs: int) -> KernelSet:
    tile = Tile(constexprs=constexprs, num_warps=4, num_stages=num_stages)
    launch = Launch(kernel=kernel, grid=("B", "1", "1"), tiles=same_tile(tile), dependent=dependent)
    return KernelSet(
        workspaces=(),
        prefill=(launch,),
        decode=(launch,),
        variant_attributes=("head_dim",),
        aot_variants=({"head_dim": 64},),
        aot_dtypes=("bfloat16",),
    )


def _job(kernel_set: KernelSet, sm: int = 120) -> kernels.CompileJob:
    return compile_job(
        CONTRACT, kernel_set, kernel_set.prefill[0], activation="bfloat16", variant={"head_dim": 64}, sm=sm
    )


def test_signature_follows_parameter_names() -> None:
    job = _job(_kernel_set(scale_kernel, BLOCK=16))
    assert dict(job.signature) == {
        "qkvz_ptr": "*bf16",
        "y_ptr": "*bf16",
        "state_ptr": "*fp32",
        "T": "i32",
        "scale": "fp32",
        "head_dim": "constexpr",
        "BLOCK": "constexpr",
    }
    assert dict(job.constexprs) == {"head_dim": 64, "BLOCK": 16}


@pytest.mark.parametrize(("sm", "runs_alone"), [(86, False), (87, True), (89, False), (90, True), (120, True)])
def test_compiled_kernel_states_what_a_launch_needs(sm: int, runs_alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_set = _kernel_set(scale_kernel, BLOCK=16)
    monkeypatch.setattr(kernels, "KERNEL_SETS", {CONTRACT.name: kernel_set})
    compiled = compile_kernel(_job(kernel_set, sm))
    assert compiled.cubin.startswith(b"\x7fELF")
    assert (compiled.threads, compiled.hidden_pointers) == (128, 2)
    assert compiled.runs_alone == runs_alone


def test_code_that_runs_elsewhere_than_stated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_set = _kernel_set(scale_kernel, BLOCK=16)
    monkeypatch.setattr(kernels, "KERNEL_SETS", {CONTRACT.name: kernel_set})
    stated = replace(ARCHITECTURES[86], is_arch_specific=True)
    monkeypatch.setattr(kernels, "ARCHITECTURES", {86: stated})
    with pytest.raises(AotError, match=r"scale_kernel: Triton .* compiled for sm_86, ARCHITECTURES says otherwise"):
        compile_kernel(_job(kernel_set, 86))


@pytest.mark.parametrize(("sm", "is_dependent"), [(86, False), (89, False), (90, True), (120, True)])
def test_dependent_launch_waits_where_it_may_begin_early(
    sm: int, is_dependent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_set = _kernel_set(waiting_kernel, dependent=True)
    monkeypatch.setattr(kernels, "KERNEL_SETS", {CONTRACT.name: kernel_set})
    compiled = compile_kernel(_job(kernel_set, sm))
    assert compiled.is_dependent == is_dependent
    # PREEXIT lets the next launch begin, ACQBULK waits for the one before.
    told = re.findall("PREEXIT|ACQBULK|STG", disassemble(compiled.cubin))
    assert told == (["PREEXIT", "ACQBULK", "STG"] if is_dependent else ["STG"])


def test_dependent_launch_that_does_not_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_set = _kernel_set(impatient_kernel, dependent=True)
    monkeypatch.setattr(kernels, "KERNEL_SETS", {CONTRACT.name: kernel_set})
    with pytest.raises(AotError, match="impatient_kernel: dependent launches wait for earlier ones"):
        compile_kernel(_job(kernel_set, 90))


def test_parameter_that_means_nothing_is_named() -> None:
    with pytest.raises(AotError, match="parameter speed of unknown_parameter_kernel is no tensor"):
        _job(_kernel_set(unknown_parameter_kernel))


def test_missing_constant_is_named() -> None:
    with pytest.raises(AotError, match=r"parameter BLOCK of scale_kernel is no tensor, .* or constant"):
        _job(_kernel_set(scale_kernel))


def test_constant_that_no_parameter_takes_is_named() -> None:
    with pytest.raises(AotError, match="scale_kernel takes no constant TILE"):
        _job(_kernel_set(scale_kernel, BLOCK=16, TILE=3))


def test_pipeline_beyond_shared_memory_is_refused_on_the_smaller_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_set = _kernel_set(deep_pipeline_kernel, num_stages=9, BLOCK=64)
    monkeypatch.setattr(kernels, "KERNEL_SETS", {CONTRACT.name: kernel_set})
    assert compile_kernel(_job(kernel_set, 90)).shared_bytes > ARCHITECTURES[86].shared_limit_bytes
    with pytest.raises(AotError, match=r"deep_pipeline_kernel: .* bytes of shared memory, sm_86 has 101376"):
        compile_kernel(_job(kernel_set, 86))


def _tables(contract: Contract) -> OperatorTables:
    kernel_set = replace(_kernel_set(scale_kernel, BLOCK=16), prefill=(), decode=())
    return OperatorTables(contract=contract, kernel_set=kernel_set, sms=(86,), prefill=(), decode=())


def test_output_extent_that_computes_with_dimensions_is_refused() -> None:
    output = Tensor(name="y", dtype="X", shape=("2 * T",), doc="")
    with pytest.raises(AotError, match=r"extent '2 \* T' of output y"):
        write_tables([_tables(replace(CONTRACT, outputs=(output,)))])


def test_counter_whose_size_depends_on_a_length_is_refused() -> None:
    counter = Workspace(name="finished", dtype="int32", shape=("B", "T"))
    tables = _tables(CONTRACT)
    with pytest.raises(AotError, match="extent 'T' of counter finished depends on a length"):
        write_tables([replace(tables, kernel_set=replace(tables.kernel_set, counters=(counter,)))])


def test_kernels_are_compiled_for_those_architectures_that_they_exist_for() -> None:
    """The tables of a library without any still state the operator, which then serves no GPU."""
    jobs = compile_kernels.compile_jobs([BLOCK_SCALED], [86, 90, 120, 121])
    assert {job.sm for job in jobs} == {120, 121}
    assert compile_kernels.compile_jobs([BLOCK_SCALED], [86, 90]) == []
    kernel_set = KERNEL_SETS[BLOCK_SCALED.name]
    text = write_tables(
        [OperatorTables(contract=BLOCK_SCALED, kernel_set=kernel_set, sms=(), prefill=[[], []], decode=[[]])]
    )
    assert 'kDecode[] = {{"block_scaled_linear_kernel", kDecode0Arguments, {}}}' in text


def test_expression_over_unknown_names_is_refused() -> None:
    tensor = Tensor(name="qkvz", dtype="X", shape=("B", "T", "width"), doc="")
    with pytest.raises(AotError, match="'width' uses unknown names width"):
        generated_files([replace(CONTRACT, inputs=(tensor,))])


def test_operator_without_kernels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_kernels, "KERNEL_SETS", {})
    with pytest.raises(AotError, match=r"block_quantize, .*, rms_norm_block_quantize: no kernels in .*kernel_sets\.py"):
        compile_kernels.build(CONTRACTS, [86], tmp_path, 1)


def test_type_that_cpu_operators_do_not_take_is_named() -> None:
    tensor = Tensor(name="codes", dtype="float16", shape=("B", "T"), doc="")
    with pytest.raises(AotError, match="codes is float16: CPU operators take X, float32, float8_e4m3fn, int32, int64"):
        generated_files([replace(CONTRACT, inputs=(tensor,))])
