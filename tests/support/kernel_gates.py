"""What every compiled kernel of a plugin library must keep, whichever architectures it was built for."""

from __future__ import annotations

from collections.abc import Sequence

from sala_export.kernel_report.disassembly import disassemble
from sala_export.kernel_report.report import KernelReport
from sala_export.kernel_report.warp_groups import overwritten_operands
from sala_export.ops.common.targets import ARCHITECTURES


def spilling(reports: Sequence[KernelReport]) -> list[str]:
    """Kernels with spilled registers or a stack. One without calls and local arrays has a stack only for those."""
    return [_named(each) for each in reports if each.facts.spill_instructions or each.facts.stack_bytes]


def too_large(reports: Sequence[KernelReport]) -> list[str]:
    """Kernels whose blocks do not fit a multiprocessor."""
    return [
        f"{_named(each)}: {each.shared_bytes} bytes of shared memory, {each.blocks} blocks"
        for each in reports
        if each.shared_bytes > ARCHITECTURES[each.shipped.sm].shared_limit_bytes or not 0 < each.occupancy <= 1
    ]


def wrong_products(reports: Sequence[KernelReport]) -> list[str]:
    """Kernels whose loops have other tensor-core instructions than their products ask for."""
    return [
        f"{_named(each)}: {found}, not {expected}"
        for each in reports
        for found, expected in (
            (each.facts.tensor_core_instructions, each.expected_tensor_core_instructions),
            (each.facts.int8_instructions, each.expected_int8_instructions),
        )
        if found != expected
    ]


def overwriting(reports: Sequence[KernelReport]) -> list[str]:
    """Kernels that overwrite what a product in flight reads: the faults of `kernel_report/warp_groups.py`."""
    grouped = [each for each in reports if each.facts.uses_warp_groups]
    return [
        f"{_named(each)}: {found}"
        for each in grouped
        if (found := overwritten_operands(disassemble(each.shipped.cubin)))
    ]


def _named(report: KernelReport) -> str:
    shipped = report.shipped
    return f"{shipped.kernel} on SM{shipped.sm}, {shipped.activations}, {shipped.constants}"
