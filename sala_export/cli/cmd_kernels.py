"""`sala-export kernels`"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..errors import UnsupportedError
from ..specs import Precision
from .options import SINGLE_GPU, json_option
from .output import print_json, table_console

if TYPE_CHECKING:
    from ..kernel_report.report import KernelReport

_WIDTH = 80
_TYPES = (Precision.FP32, Precision.BF16, Precision.FP16)


@click.command()
@click.option(
    "--gpu", type=SINGLE_GPU, help="Show only the kernels that this GPU would run, e.g. rtx5090.  [default: all]"
)
@json_option
def kernels(gpu: str | None, as_json: bool) -> None:
    """Show registers, shared memory, occupancy and tensor-core instructions of the shipped GPU kernels.

    The figures come from the compiled kernels in the installed plugin library. You need no GPU. For example:

    \b
      sala-export kernels --gpu rtx5090

    The columns are:

    \b
      kernel   the name, of the attentions without theirs: append is infllmv2_append_kernel
      runs in  the step: prefill, decode or all
      type     of activations and caches: all for a kernel that serves every type
      dim      channels of an attention head (head_dim), gated for silu(gate) * up, else -
      threads  in a block
      regs     registers of a thread
      shared   bytes of shared memory of a block
      blocks   that a multiprocessor runs at once
      warps    occupancy: share of the warps that a multiprocessor can hold
      MMA      tensor-core instructions of the main loop, per warp and turn

    With --json you also get the loop of int8 products that select has.
    """
    from ..installation import plugin_library
    from ..kernel_report.report import report_kernels
    from ..kernel_report.shipped import shipped_kernels

    shipped = shipped_kernels(plugin_library())
    if gpu is not None:
        sm = _architecture(gpu, {kernel.sm for kernel in shipped})
        shipped = tuple(kernel for kernel in shipped if kernel.sm == sm)
    reports = report_kernels(shipped)
    if as_json:
        print_json({"kernels": [describe(report) for report in reports]})
    else:
        _print_table(reports)


def _architecture(gpu: str, there: Collection[int]) -> int:
    from ..engine.recipe import load_recipe
    from ..ops.common.targets import serving_architecture

    capability = load_recipe(gpu).compute_capability
    found = serving_architecture(capability, there)
    if found is None:
        served = ", ".join(f"SM{sm}" for sm in sorted(there))
        raise UnsupportedError(f"--gpu {gpu}: no kernels for {capability.sm}, installed are those for {served}")
    return found


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
        "main_loop_instructions": list(facts.loop_instructions),
        "expected_main_loop_tensor_core_instructions": report.expected_tensor_core_instructions,
        "int8_loop_tensor_core_instructions": facts.int8_instructions,
        "int8_loop_instructions": list(facts.int8_loop_instructions),
        "expected_int8_loop_tensor_core_instructions": report.expected_int8_instructions,
        "uses_warp_groups": facts.uses_warp_groups,
    }


def _print_table(reports: tuple[KernelReport, ...]) -> None:
    console = table_console(_WIDTH)
    for (operator, sm), group in itertools.groupby(sorted(reports, key=_section), key=_section):
        console.print(f"{operator} on SM{sm}: {', '.join(_gpus(sm))}", soft_wrap=True)
        table = Table(
            *("kernel", "runs in", "type", "dim", "threads", "regs", "shared", "blocks", "warps", "MMA"),
            box=None,
            padding=(0, 1, 0, 0),
        )
        for column in table.columns[3:]:
            column.justify = "right"
        for report in group:
            table.add_row(*_row(report))
        console.print(table)
        console.print()
    spilling = [report.shipped.kernel for report in reports if report.facts.spill_instructions]
    console.print(f"Registers are spilled by: {', '.join(spilling) or 'none'}.", soft_wrap=True)


def _one_or_all(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else "all"


def _section(report: KernelReport) -> tuple[str, int]:
    return report.shipped.operator, report.shipped.sm


def _gpus(sm: int) -> list[str]:
    """Names of the recipes whose GPUs run the kernels of an architecture."""
    from ..engine.recipe import load_recipe, recipe_paths
    from ..ops.common.targets import serving_architecture

    return [name for name in recipe_paths() if serving_architecture(load_recipe(name).compute_capability) == sm]


def _short_name(kernel: str, operator: str) -> str:
    """Without the first word of the operator's name, unless both names are the same."""
    return kernel if kernel == operator else kernel.removeprefix(operator.partition("_")[0] + "_")


def _dimension(variant: Mapping[str, int]) -> str:
    return "gated" if variant.get("gated") else str(variant.get("head_dim", "-"))


def _row(report: KernelReport) -> tuple[str, ...]:
    shipped, facts = report.shipped, report.facts
    found, expected = facts.tensor_core_instructions, report.expected_tensor_core_instructions
    return (
        _short_name(shipped.kernel.removesuffix("_kernel"), shipped.operator),
        _one_or_all(shipped.sequences),
        _one_or_all([precision for precision in _TYPES if precision.dtype in shipped.activations]),
        _one_or_all([_dimension(variant) for variant in shipped.variants]),
        str(shipped.threads),
        str(facts.registers),
        f"{report.shared_bytes:,}",
        str(report.blocks),
        f"{100 * report.occupancy:.0f} %",
        "-" if not found and not expected else str(found) if found == expected else f"{found} of {expected}",
    )
