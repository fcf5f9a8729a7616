"""Gates on the shipped cubins, which need no GPU; and the report itself, against figures known elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import triton
from support.kernel_gates import overwriting, spilling, too_large, wrong_products

from sala_export.cli.app import run
from sala_export.errors import BuildError
from sala_export.installation import onnxruntime_operators, plugin_library
from sala_export.kernel_report.cubin import CubinFacts, read_cubin
from sala_export.kernel_report.disassembly import disassemble, resource_usage
from sala_export.kernel_report.occupancy import blocks_per_multiprocessor
from sala_export.kernel_report.report import KernelReport, report_kernels
from sala_export.kernel_report.shipped import MainLoopProduct, ShippedKernel, shipped_kernels
from sala_export.kernel_report.tensor_cores import INT8_LOOP, instructions_per_warp
from sala_export.kernel_report.warp_groups import INSTRUCTION, LABEL, register_operands
from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS

SHIPPED = shipped_kernels(plugin_library())


@pytest.fixture(scope="module")
def reports() -> tuple[KernelReport, ...]:
    return report_kernels(SHIPPED)


def test_every_launch_is_shipped_for_every_type_variant_and_architecture() -> None:
    wanted = {
        (launch.name, sequence, sm, activation, tuple(variant.items()))
        for kernel_set in KERNEL_SETS.values()
        for sequence, launches in (("prefill", kernel_set.prefill), ("decode", kernel_set.decode))
        for launch in launches
        for sm in kernel_set.served(AOT_ARCHITECTURES)
        for activation in kernel_set.aot_dtypes
        for variant in kernel_set.aot_variants
    }
    found = {
        (kernel.kernel, sequence, kernel.sm, activation, tuple(variant.items()))
        for kernel in SHIPPED
        for sequence in kernel.sequences
        for activation in kernel.activations
        for variant in kernel.variants
    }
    assert wanted <= found


def test_no_kernel_spills_or_has_a_stack(reports: tuple[KernelReport, ...]) -> None:
    assert spilling(reports) == []


def test_every_block_fits_its_multiprocessor(reports: tuple[KernelReport, ...]) -> None:
    assert too_large(reports) == []


def test_main_loops_have_exactly_the_tensor_core_instructions_of_their_products(
    reports: tuple[KernelReport, ...],
) -> None:
    assert wrong_products(reports) == []
    with_int8 = {(each.shipped.kernel, each.shipped.sm) for each in reports if each.expected_int8_instructions}
    assert with_int8 == {("infllmv2_select_kernel", sm) for sm in (86, 89, 120)}
    with_products = {report.shipped.kernel for report in reports if report.expected_tensor_core_instructions}
    assert with_products == {
        "block_scaled_linear_add_kernel",
        "block_scaled_linear_kernel",
        "infllmv2_attend_kernel",
        "infllmv2_decode_attend_kernel",
        "infllmv2_decode_normalise_kernel",
        "infllmv2_decode_score_kernel",
        "infllmv2_gather_kernel",
        "infllmv2_gather_union_kernel",
        "infllmv2_select_kernel",
        "lightning_carry_kernel",
        "lightning_prefill_kernel",
    }


def test_nothing_overwrites_what_a_product_in_flight_reads(reports: tuple[KernelReport, ...]) -> None:
    """The two compiler faults of `sala_export/kernel_report/warp_groups.py`."""
    assert overwriting(reports) == []
    with_groups = [report.shipped for report in reports if report.facts.uses_warp_groups]
    assembly = [(kernel, disassemble(kernel.cubin)) for kernel in with_groups]
    with_registers = {
        (kernel.kernel, activation, variant["head_dim"])
        for kernel, text in assembly
        if register_operands(text)
        for activation in kernel.activations
        for variant in kernel.variants
    }
    assert with_registers == {
        *product(
            (
                *("infllmv2_attend_kernel", "infllmv2_gather_union_kernel"),
                *("lightning_carry_kernel", "lightning_prefill_kernel"),
            ),
            ("bfloat16", "float16"),
            (64, 128),
        ),
    }


@pytest.mark.parametrize(
    ("sm", "threads", "registers", "shared_bytes", "blocks"),
    [
        # By NVIDIA's occupancy calculator.
        (86, 128, 32, 0, 12),
        (86, 32, 16, 0, 16),
        (86, 256, 255, 0, 1),
        (86, 128, 128, 0, 4),
        (86, 128, 32, 49152, 2),
        (120, 128, 32, 101376, 1),
        (90, 1024, 32, 0, 2),
        (90, 128, 24, 10240, 16),
    ],
)
def test_occupancy_is_the_known_one(sm: int, threads: int, registers: int, shared_bytes: int, blocks: int) -> None:
    found = blocks_per_multiprocessor(sm, threads=threads, registers=registers, shared_bytes=shared_bytes)
    assert found == blocks


@pytest.mark.parametrize(
    ("sm", "kibibytes"), [(86, 99), (87, 163), (89, 99), (90, 227), (110, 227), (120, 99), (121, 99)]
)
def test_shared_memory_of_a_block_is_the_published_limit(sm: int, kibibytes: int) -> None:
    """CUDA C++ Programming Guide, "Maximum amount of shared memory per thread block"."""
    assert ARCHITECTURES[sm].shared_limit_bytes == kibibytes << 10


@pytest.mark.parametrize(
    ("products", "warps", "sm", "count"),
    [
        # Counted by hand: tiles of 16 x 8, 16 deep.
        ([(16, 8, 16)], 1, 86, 1),
        ([(32, 64, 32)], 4, 86, 2 * 2 * 2),
        ([(128, 64, 128), (128, 128, 64)], 8, 120, 8 * 8 + 16 * 4),
        # 32 columns are 4 tiles for 8 warps on columns: each tile is computed twice.
        ([(32, 128, 64), (32, 32, 64)], 8, 86, 2 * 2 * 4 + 2 * 1 * 4),
        ([(17, 8, 16)], 1, 86, 2),
        # Two groups of 64 rows; one of 64 rows whose 128 columns two groups share; too few rows for a group.
        ([(128, 64, 128)], 8, 90, 8),
        ([(64, 128, 32)], 8, 90, 2),
        ([(32, 128, 64)], 8, 90, 2 * 2 * 4),
        # On SM110 one thread has the tensor cores compute 64 rows or more: no instruction of the warps.
        ([(128, 64, 128), (32, 128, 64)], 8, 110, 4 * 4 * 4),
        ([], 4, 86, 0),
    ],
)
def test_count_follows_from_the_sizes(products: list[tuple[int, int, int]], warps: int, sm: int, count: int) -> None:
    main_loop = [MainLoopProduct(m=m, n=n, k=k, operand="X") for m, n, k in products]
    without_tensor_cores = MainLoopProduct(m=64, n=64, k=64, operand="float32")
    assert instructions_per_warp([without_tensor_cores, *main_loop], warps=warps, sm=sm) == count


def test_block_scaled_instructions_are_twice_as_deep_and_of_a_warp() -> None:
    main_loop = [MainLoopProduct(m=128, n=256, k=128, operand="mxf8")]
    assert instructions_per_warp(main_loop, warps=8, sm=120) == 8 * 32 * 4 // 8


def test_int8_instructions_are_as_deep_and_counted_apart() -> None:
    main_loop = [MainLoopProduct(m=128, n=128, k=128, operand=operand) for operand in ("X", "int8")]
    assert instructions_per_warp(main_loop, warps=8, sm=86) == 8 * 16 * 8 // 8
    assert instructions_per_warp(main_loop, warps=8, sm=86, operands=INT8_LOOP) == 8 * 16 * 4 // 8


def test_groups_beyond_the_rows_of_a_product_that_feeds_another_compute_it_alike() -> None:
    """Lightning prefill at 128 channels and 64 tokens, counted in its assembly."""
    sizes = [(128, 64, 128, True), *[(64, 64, 64, True)] * 2, (128, 64, 64, False), *[(128, 64, 64, False)] * 2]
    main_loop = [MainLoopProduct(m=m, n=n, k=k, operand="X", feeds_product=feeds) for m, n, k, feeds in sizes]
    assert instructions_per_warp(main_loop, warps=8, sm=90) == 8 + 2 * (2 * 4) + 4 + 2 * 4


def one_of_each(sm: int) -> list[ShippedKernel]:
    """One cubin of every kernel of an architecture."""
    return list({kernel.kernel: kernel for kernel in SHIPPED if kernel.sm == sm}.values())


@pytest.mark.parametrize("sm", AOT_ARCHITECTURES)
def test_cubins_are_read_as_the_tools_of_nvidia_read_them(sm: int) -> None:
    for kernel in one_of_each(sm):
        assert read_cubin(kernel.cubin, sm) == told_by_tools(kernel.cubin), kernel.kernel


LOCAL_MEMORY = """
.version 8.7
.target sm_{sm}
.address_size 64
.visible .entry kernel(.param .u64 data, .param .u32 start)
{{
  .local .align 16 .b8 array[256];
  .reg .u64 %d<5>;
  .reg .u32 %r<4>;
  .reg .pred %more;
  ld.param.u64 %d1, [data];
  ld.param.u32 %r1, [start];
  mov.u64 %d2, array;
  mul.wide.u32 %d3, %r1, 4;
  add.u64 %d4, %d2, %d3;
  ld.global.u32 %r2, [%d1];
  st.local.u32 [%d4], %r2;
  st.local.u32 [%d2+8], %r2;
again:
  ld.local.u32 %r3, [%d4+4];
  st.global.u32 [%d1], %r3;
  add.u32 %r1, %r1, 1;
  setp.lt.u32 %more, %r1, 100;
  @%more bra again;
  ret;
}}
"""


@pytest.mark.parametrize("sm", ["86", "89", "90a", "120a"])
def test_stack_and_local_memory_are_seen(sm: str, tmp_path: Path) -> None:
    source, cubin = tmp_path / "kernel.ptx", tmp_path / "kernel.cubin"
    source.write_text(LOCAL_MEMORY.format(sm=sm), encoding="ascii")
    subprocess.run([triton.knobs.nvidia.ptxas.path, f"-arch=sm_{sm}", "-o", cubin, source], check=True)
    facts = read_cubin(cubin.read_bytes(), int(sm.rstrip("a")))
    assert facts == told_by_tools(cubin.read_bytes())
    assert facts.stack_bytes == 256
    assert facts.spill_instructions >= 3


BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")
TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|QMMA)\.")
INTEGER = re.compile(r"\bIMMA\.")


def largest_loops(
    instructions: Sequence[str], loops: Sequence[range], pattern: re.Pattern[str]
) -> tuple[list[str], list[range]]:
    """The loops with the most instructions like `pattern`, of those without another such loop in them.

    Returns: those instructions of the first; the loops.
    """
    places = [position for position, text in enumerate(instructions) if pattern.search(text)]
    found = [loop for loop in loops if set(places) & set(loop)]
    counts = {
        loop: sum(position in loop for position in places)
        for loop in found
        if not any(set(other) < set(loop) for other in found)
    }
    bodies = sorted((loop for loop in counts if counts[loop] == max(counts.values())), key=lambda loop: loop.start)
    return [instructions[position] for position in places if bodies and position in bodies[0]], bodies


def told_by_tools(cubin: bytes) -> CubinFacts:
    usage, listing = resource_usage(cubin), disassemble(cubin).splitlines()
    values = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in listing:
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.match(line):
            instructions.append(instruction[1])
    loops = [
        range(labels[branch[1]], position + 1)
        for position, text in enumerate(instructions)
        if (branch := BRANCH.search(text)) and labels.get(branch[1], len(instructions)) <= position
    ]
    (products, bodies), (int8_products, int8_bodies) = (
        largest_loops(instructions, loops, pattern) for pattern in (TENSOR_CORE, INTEGER)
    )
    return CubinFacts(
        registers=values["REG"],
        stack_bytes=values["STACK"] + values["LOCAL"],
        static_shared_bytes=values["SHARED"],
        spill_instructions=sum(bool(re.search(r"\b(LDL|STL)\b", text)) for text in instructions),
        tensor_core_instructions=len(products),
        loop_instructions=tuple(map(len, bodies)),
        int8_instructions=len(int8_products),
        int8_loop_instructions=tuple(map(len, int8_bodies)),
        uses_warp_groups=any("HGMMA" in text for text in products),
    )


@pytest.mark.parametrize("cut", [0, 5, 40, 64, 1000])
def test_bytes_that_are_no_cubin_are_refused(cut: int) -> None:
    with pytest.raises(BuildError, match=r"is no cubin: install the package again"):
        read_cubin(SHIPPED[0].cubin[:cut], 86)


def test_library_without_a_list_is_refused() -> None:
    with pytest.raises(BuildError, match=r"does not list its kernels: install the package again"):
        shipped_kernels(onnxruntime_operators())


def test_command_tells_the_kernels_of_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "--gpu", "a6000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["kernels"]
    assert {kernel["sm"] for kernel in told} == {86}
    assert {kernel["operator"] for kernel in told} == {
        name for name, kernel_set in KERNEL_SETS.items() if 86 in kernel_set.architectures
    }
    assert all(kernel["registers"] > 0 and kernel["spill_instructions"] == 0 for kernel in told)
    assert run(["kernels", "--gpu", "a6000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "lightning_attention on SM86: a6000, rtx3090" in lines
    rows = [tuple(line.split()[:4]) for line in lines]
    # Rows differ in the columns that name a variant.
    named = [row for row in rows if row[1:2] and row[1] in ("prefill", "decode", "all")]
    assert len(named) == len(set(named)) == len(told)
    assert lines[-1] == "Registers are spilled by: none."


def test_gpu_whose_kernels_are_not_installed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "--gpu", "orin64"]) == 2
    served = ", ".join(f"SM{sm}" for sm in AOT_ARCHITECTURES)
    assert capsys.readouterr().err == f"error: --gpu orin64: no kernels for SM87, installed are those for {served}\n"


def test_unknown_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "--gpu", "rtx9999"]) == 2
    assert "rtx9999: unknown GPU" in capsys.readouterr().err
