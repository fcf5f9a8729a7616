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
        for sm in AOT_ARCHITECTURES
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
