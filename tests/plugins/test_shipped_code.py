"""Instructions of the shipped cubins whose order decides whether a kernel is right, or how long it waits."""

from __future__ import annotations

import re

import pytest

from sala_export.installation import plugin_library
from sala_export.kernel_report.disassembly import disassemble
from sala_export.kernel_report.shipped import ShippedKernel, shipped_kernels
from sala_export.ops.common.launch import DEPENDENT
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS


@pytest.fixture(scope="module")
def shipped() -> tuple[ShippedKernel, ...]:
    return shipped_kernels(plugin_library())


def test_dependent_launches_touch_no_memory_and_do_not_end_before_they_have_waited(
    shipped: tuple[ShippedKernel, ...],
) -> None:
    waiting = set()
    for kernel in shipped:
        if not kernel.constants.get(DEPENDENT):
            continue
        before, wait, _ = disassemble(kernel.cubin).partition("ACQBULK")
        assert wait
        assert not re.search(r"\b(LDG|STG|LD|ST|ATOMG?|RED|LDGSTS|UBLKCP|EXIT|RET)\b", before), kernel.kernel
        waiting.add((kernel.kernel, kernel.sm))
    assert waiting == {
        (launch.name, sm)
        for kernel_set in KERNEL_SETS.values()
        for launch in kernel_set.launches
        for sm in kernel_set.served(AOT_ARCHITECTURES)
        if launch.is_dependent(sm)
    }


def test_lightning_decode_loads_its_state_first_and_waits_for_memory_once(shipped: tuple[ShippedKernel, ...]) -> None:
    """ptxas may put loads off to where they are used; then each waits as long as all do together."""
    published = {"head_dim": 128}
    kernels = [
        kernel for kernel in shipped if kernel.kernel == "lightning_decode_kernel" and published in kernel.variants
    ]
    assert {kernel.sm for kernel in kernels} == set(AOT_ARCHITECTURES)
    for kernel in kernels:
        found = re.findall(r"\b(?:LDG|SHFL|STG)[.\w]*", disassemble(kernel.cubin))
        # SHFL, the sum of squares of q, is the first that needs what was loaded.
        loads = found[: next(i for i, text in enumerate(found) if text.startswith("SHFL"))]
        of_state = 128 * 128 // kernel.constants["VALUE_TILES"] // kernel.threads // 4
        assert [text.startswith("LDG.E.128") for text in loads[: of_state + 1]] == [True] * of_state + [False]
        until_stored = found[len(loads) : next(i for i, text in enumerate(found) if text.startswith("STG"))]
        assert not [text for text in until_stored if text.startswith("LDG")]


def test_block_scaled_products_are_those_of_the_tensor_cores_and_their_loops_copy_asynchronously(
    shipped: tuple[ShippedKernel, ...],
) -> None:
    """A compiler may also decode the codes and multiply in 16 bits, at a quarter of the rate, or load through registers
    and wait for memory in every turn."""
    kernels = [kernel for kernel in shipped if kernel.operator.startswith("block_scaled_linear")]
    assert {kernel.operator for kernel in kernels} == {"block_scaled_linear", "block_scaled_linear_add"}
    for kernel in kernels:
        code = disassemble(kernel.cubin)
        assert set(re.findall(r"\b\w*MMA\b[.\w]*", code)) == {"QMMA.SF.16832.F32.E4M3.E4M3.E8"}
        # Only what is added, if anything, is loaded into registers, after the loop.
        loop_end = max(code.rindex("QMMA"), code.rindex("LDGDEPBAR"))
        assert "LDGSTS.E.BYPASS.128" in code[:loop_end]
        assert not re.search(r"\bLDG\b", code[:loop_end])
        assert set(re.findall(r"\bSTG\b[.\w]*", code)) == {"STG.E.128"}
