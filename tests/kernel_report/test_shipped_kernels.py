"""Gates on the shipped cubins, which need no GPU; and the report itself, against figures known elsewhere."""

from __future__ import annotations

import json
from itertools import product

import pytest

from sala_export.cli.app import run
from sala_export.errors import BuildError
from sala_export.installation import onnxruntime_operators, plugin_library
from sala_export.kernel_report.cubin import _instructions, _loops, read_cubin
from sala_export.kernel_report.occupancy import blocks_per_multiprocessor
from sala_export.kernel_report.report import KernelReport, report_kernels
from sala_export.kernel_report.shipped import MainLoopProduct, shipped_kernels
from sala_export.kernel_report.tensor_cores import instructions_per_warp
from sala_export.ops.common.targets import AOT_ARCHITECTURES
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
        for sm in AOT_ARCHITECTURES
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
    """A kernel without calls and local arrays has a stack frame only for spilled registers."""
    spilling = [
        (report.shipped.kernel, report.shipped.sm, report.shipped.constants)
        for report in reports
        if report.facts.spill_instructions or report.facts.stack_bytes
    ]
    assert spilling == []


def test_every_block_fits_its_multiprocessor(reports: tuple[KernelReport, ...]) -> None:
    for report in reports:
        limit = AOT_ARCHITECTURES[report.shipped.sm].shared_limit_bytes
        assert report.shared_bytes <= limit, report.shipped
        assert report.blocks >= 1, report.shipped
        assert 0 < report.occupancy <= 1


def test_main_loops_have_exactly_the_tensor_core_instructions_of_their_products(
    reports: tuple[KernelReport, ...],
) -> None:
    wrong = [
        (report.shipped.kernel, report.shipped.sm, report.shipped.constants, found, expected)
        for report in reports
        if (found := report.facts.tensor_core_instructions) != (expected := report.expected_tensor_core_instructions)
    ]
    assert wrong == []
    with_products = {report.shipped.kernel for report in reports if report.expected_tensor_core_instructions}
    assert with_products == {
        "infllmv2_attend_kernel",
        "infllmv2_decode_attend_kernel",
        "infllmv2_decode_normalise_kernel",
        "infllmv2_decode_score_kernel",
        "infllmv2_gather_kernel",
        "infllmv2_select_kernel",
        "lightning_carry_kernel",
        "lightning_prefill_kernel",
    }


def test_nothing_overwrites_what_a_product_in_flight_reads(reports: tuple[KernelReport, ...]) -> None:
    """The two compiler faults of `sala_export/kernel_report/warp_groups.py`."""
    assert [(r.shipped.kernel, r.facts.overwritten_operands) for r in reports if r.facts.overwritten_operands] == []
    with_registers = {
        (report.shipped.kernel, activation, variant["head_dim"])
        for report in reports
        if report.facts.register_operands
        for activation in report.shipped.activations
        for variant in report.shipped.variants
    }
    assert with_registers == {
        *product(("infllmv2_attend_kernel",), ("bfloat16", "float16"), (64, 128)),
        *product(("lightning_carry_kernel", "lightning_prefill_kernel"), ("bfloat16", "float16"), (128,)),
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


@pytest.mark.parametrize(("sm", "kibibytes"), [(86, 99), (89, 99), (90, 227), (120, 99)])
def test_shared_memory_of_a_block_is_the_published_limit(sm: int, kibibytes: int) -> None:
    """CUDA C++ Programming Guide, "Maximum amount of shared memory per thread block"."""
    assert AOT_ARCHITECTURES[sm].shared_limit_bytes == kibibytes << 10


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
        ([], 4, 86, 0),
    ],
)
def test_count_follows_from_the_sizes(products: list[tuple[int, int, int]], warps: int, sm: int, count: int) -> None:
    main_loop = [MainLoopProduct(m=m, n=n, k=k, operand="X") for m, n, k in products]
    without_tensor_cores = MainLoopProduct(m=64, n=64, k=64, operand="float32")
    assert instructions_per_warp([without_tensor_cores, *main_loop], warps=warps, sm=sm) == count


ASSEMBLY = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
.L_x_0:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
        /*0050*/              @P1  BRA `(.L_x_1) ;
        /*0060*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0070*/                   EXIT ;
"""


def test_loops_are_found_by_their_branches_back() -> None:
    assert len(_instructions(ASSEMBLY)) == 8
    assert _loops(ASSEMBLY) == [(2, 4), (1, 5)]


def test_bytes_that_are_no_cubin_are_refused() -> None:
    with pytest.raises(BuildError, match=r"cuobjdump|nvdisasm"):
        read_cubin(b"no cubin")


def test_library_without_a_list_is_refused() -> None:
    with pytest.raises(BuildError, match=r"does not list its kernels: install the package again"):
        shipped_kernels(onnxruntime_operators())


def test_command_tells_the_kernels_of_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "--gpu", "a6000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {kernel["sm"] for kernel in told} == {86}
    assert {kernel["operator"] for kernel in told} == set(KERNEL_SETS)
    assert all(kernel["registers"] > 0 and kernel["spill_instructions"] == 0 for kernel in told)
    assert run(["kernels", "--gpu", "a6000"]) == 0
    text = capsys.readouterr().out
    for expected in ("lightning_prefill_kernel", "registers", "occupancy"):
        assert expected in text


def test_unknown_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "--gpu", "rtx9999"]) == 2
    assert "rtx9999: unknown GPU" in capsys.readouterr().err
