"""What every GPU kernel moves and computes beside the floor, from `ops/*/cost.py`: the account of
docs/kernel_predictions.md.

    python -m benchmarks.kernel_account     # print it; python -m benchmarks.record writes it into the page
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from benchmarks.gpu_machine import rates_of
from benchmarks.kernel_cases import Case, published_cases
from benchmarks.kernel_measure import account, least_seconds
from benchmarks.tables import duration, markdown
from sala_export.engine.recipe import GpuRecipe
from sala_export.ops.common.cost import KernelCost, total
from sala_export.ops.common.targets import require_architecture
from sala_export.specs import DType

GPUS = ("h100", "rtx5090", "a6000")
COUNTED = "rtx5090"
"""The GPU whose bytes and operations are shown. Others gather other numbers of tokens, and not all bound scores."""
DTYPE = DType.BFLOAT16


def page() -> str:
    """The table as markdown: for each call its launches, their sum, and the floor, with the least time on `GPUS`."""
    header = (
        *("call", "launch", "read", "written", "operations", "of int8"),
        *(f"least time, {gpu}" for gpu in GPUS),
    )
    rates = {gpu: rates_of(gpu) for gpu in GPUS}
    lines = []
    for case in published_cases():
        if case.calls == case.batch == 1 and not case.likeness:
            accounts = {gpu: dict(_entries(case, recipe)) for gpu, recipe in rates.items()}
            for name, parts in accounts[COUNTED].items():
                least = (_least(accounts[gpu].get(name), recipe) for gpu, recipe in rates.items())
                lines.append((case.name, name, *_amounts(total(name, parts)), *least))
    return markdown(header, lines)


def _entries(case: Case, rates: GpuRecipe) -> Iterator[tuple[str, tuple[KernelCost, ...]]]:
    """Name, and the costs whose least times follow each other."""
    costs, floor = account(case, DTYPE, require_architecture(rates.compute_capability))
    for cost in costs:
        yield f"`{cost.kernel}`", (cost,)
    yield "sum", tuple(costs)
    yield "floor", (floor,)


def _least(parts: Sequence[KernelCost] | None, rates: GpuRecipe) -> str:
    """Empty for what a GPU does not launch."""
    return "" if parts is None else duration(sum(least_seconds(part, rates, DTYPE) for part in parts))


def _amounts(cost: KernelCost) -> tuple[str, ...]:
    operations = (f"{count / 1e9:.2f} G" for count in (cost.operations, cost.int8_operations))
    return f"{cost.bytes_read / 1e6:.2f} MB", f"{cost.bytes_written / 1e6:.2f} MB", *operations


if __name__ == "__main__":
    sys.stdout.write(page() + "\n")
