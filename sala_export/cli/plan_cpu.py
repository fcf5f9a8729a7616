"""What `sala-export plan --gpu cpu` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..specs import format_bytes, format_tokens
from .output import table_console

if TYPE_CHECKING:
    from ..planner.cpu import CpuPlan, CpuRow, PlannedCpuForm
    from ..planner.cpu_rates import CpuMachine, Figure


def describe_cpu(found: CpuPlan, model: str | None) -> dict[str, Any]:
    """Everything that the plan of a CPU shows, as plain JSON values, in seconds and bytes."""
    machine = found.machine
    return {
        "model": "published dimensions" if model is None else model,
        "target": "cpu",
        "max_context": found.context,
        "machine": {
            "cores": machine.cores,
            "simd_level": machine.simd_level,
            "memory_bytes": _figure_fields(machine.memory_bytes),
            "bytes_per_second": _figure_fields(machine.bytes_per_second),
            "operations_per_second": {
                name: _figure_fields(figure) for name, figure in machine.operations_per_second.items()
            },
        },
        "forms": [_form_fields(form) for form in found.forms],
    }


def print_cpu(found: CpuPlan, model: str | None) -> None:
    """Print the machine, and what it holds in every precision."""
    console = table_console()
    name = "MiniCPM-SALA, published dimensions" if model is None else model
    console.print(f"{name} on a CPU, one session, at a context of {format_tokens(found.context)}")
    for table in (_machine_table(found.machine), _form_table(found)):
        console.print()
        console.print(table)
    console.print()
    console.print(
        'The second table is predicted. "memory" has the caches, and 1 GiB for the system and other programs.'
    )


def _figure_fields(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "source": figure.source.value}


def _form_fields(form: PlannedCpuForm) -> dict[str, Any]:
    return {
        "precision": form.precision.value,
        "cpu_math": form.math.value,
        "weights_bytes": form.weights_bytes,
        "largest_context": form.largest_context,
        "contexts": [_row_fields(row) for row in form.rows],
        "source": "predicted",
    }


def _row_fields(row: CpuRow) -> dict[str, Any]:
    return {
        "context": row.context,
        "caches_bytes": row.caches_bytes,
        "memory_bytes": row.memory_bytes,
        "fits": row.fits,
        "decode_tokens_per_second": row.decode_tokens_per_second,
        "ttft_seconds": row.prefill_seconds,
        "prefill_tokens_per_second": row.prefill_tokens_per_second,
    }


def _machine_table(machine: CpuMachine) -> Table:
    table = Table("machine", "", "", box=None)
    table.add_row("cores", str(machine.cores), f"operators use {machine.simd_level}")
    table.add_row("memory", format_bytes(machine.memory_bytes.value), machine.memory_bytes.source.value)
    bandwidth = machine.bytes_per_second
    table.add_row("bandwidth", f"{bandwidth.value / 1e9:.1f} GB/s", bandwidth.source.value)
    for name, rate in machine.operations_per_second.items():
        title = "attention in bfloat16" if name == "bfloat16_attention" else f"products in {name}"
        table.add_row(title, f"{rate.value / 1e9:.0f} Gop/s", rate.source.value)
    return table


def _form_table(found: CpuPlan) -> Table:
    columns = ("precision", "math", "weights", "memory", "largest", "first token", "prefill", "decode")
    table = Table(*columns, box=None)
    for form in found.forms:
        row = next(row for row in form.rows if row.context == found.context)
        table.add_row(
            form.precision.value,
            form.math.value,
            format_bytes(form.weights_bytes),
            format_bytes(row.memory_bytes),
            "no" if form.largest_context is None else format_tokens(form.largest_context),
            *_speeds(row),
        )
    return table


def _speeds(row: CpuRow) -> tuple[str, str, str]:
    if not row.fits:
        return "no", "no", "no"
    first, prefill, decode = row.prefill_seconds, row.prefill_tokens_per_second, row.decode_tokens_per_second
    return f"{first:.1f} s", f"{prefill:.1f}/s", f"{decode:.1f}/s"
