"""`sala-export kernels`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..errors import UnsupportedError
from .options import json_option
from .output import print_json, table_console

if TYPE_CHECKING:
    from ..kernel_report.report import KernelReport


@click.command()
@click.option("--gpu", help="Show only the kernels that this GPU would run, e.g. rtx5090.  [default: all]")
@json_option
def kernels(gpu: str | None, as_json: bool) -> None:
    """Show registers, shared memory, occupancy and tensor-core instructions of the shipped GPU kernels.

    The figures come from the compiled kernels in the installed plugin library. You need no GPU.
    """
    from ..installation import plugin_library
    from ..kernel_report.report import report_kernels
    from ..kernel_report.shipped import shipped_kernels

    shipped = shipped_kernels(plugin_library())
    if gpu is not None:
        sm = _architecture(gpu)
        shipped = tuple(kernel for kernel in shipped if kernel.sm == sm)
    reports = report_kernels(shipped)
    if as_json:
        print_json([describe(report) for report in reports])
    else:
        _print_table(reports)


def _architecture(gpu: str) -> int:
    from ..engine.recipe import load_recipe
    from ..ops.common.targets import require_architecture

    try:
        return require_architecture(load_recipe(gpu).compute_capability)
    except UnsupportedError as error:
        raise UnsupportedError(f"--gpu {gpu}: {error}") from None


def describe(report: KernelReport) -> dict[str, Any]:
    """Everything that is known about one cubin, as plain JSON values."""
    shipped, facts = report.shipped, report.facts
    return {
        "operator": shipped.operator,
        "kernel": shipped.kernel,
        "sm": shipped.sm,
        "sequences": list(shipped.sequences),
        "activations": list(shipped.activations),
        "variants": [dict(variant) for variant in shipped.variants],
        "constants": dict(shipped.constants),
        "num_stages": shipped.num_stages,
        "threads": shipped.threads,
        "registers": facts.registers,
        "spill_instructions": facts.spill_instructions,
        "stack_bytes": facts.stack_bytes,
        "shared_bytes": report.shared_bytes,
        "blocks_per_multiprocessor": report.blocks,
        "occupancy": report.occupancy,
        "main_loop_tensor_core_instructions": facts.tensor_core_instructions,
        "expected_main_loop_tensor_core_instructions": report.expected_tensor_core_instructions,
        "uses_warp_groups": facts.uses_warp_groups,
    }


def _print_table(reports: tuple[KernelReport, ...]) -> None:
    console = table_console()
    table = Table(
        *("kernel", "SM", "type", "for", "threads", "registers", "spills", "stack", "shared", "blocks", "occupancy"),
        *("MMA in the loop", "expected"),
        box=None,
    )
    for report in reports:
        shipped, facts = report.shipped, report.facts
        variants = ["; ".join(f"{name} {value}" for name, value in variant.items()) for variant in shipped.variants]
        table.add_row(
            shipped.kernel,
            str(shipped.sm),
            ", ".join(shipped.activations),
            ", ".join(variants),
            str(shipped.threads),
            str(facts.registers),
            str(facts.spill_instructions),
            f"{facts.stack_bytes} B",
            f"{report.shared_bytes:,} B",
            str(report.blocks),
            f"{100 * report.occupancy:.0f} %",
            str(facts.tensor_core_instructions or "-") + (" (warp groups)" if facts.uses_warp_groups else ""),
            str(report.expected_tensor_core_instructions or "-"),
        )
    console.print(table)
