"""What every GPU kernel moves and computes beside the floor, from `ops/*/cost.py`: the account of
docs/kernel_predictions.md.

    python -m benchmarks.kernel_account     # print it; python -m benchmarks.record writes it into the page
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.gpu_machine import rates_of
from benchmarks.kernel_cases import Case, published_cases
from benchmarks.kernel_measure import account, least_seconds
from benchmarks.tables import duration, markdown
from sala_export.ops.common.cost import KernelCost, total
from sala_export.specs import DType

GPUS = ("h100", "rtx5090", "a6000")
DTYPE = DType.BFLOAT16


def page() -> str:
    """The table as markdown: for each call its launches, their sum, and the floor, with the least time on `GPUS`."""
    rates = [rates_of(gpu) for gpu in GPUS]
    header = ("call", "launch", "read", "written", "operations", *(f"least time, {gpu}" for gpu in GPUS))
    lines = []
    for case in published_cases():
        if case.calls == case.batch == 1 and not case.likeness:
            for name, cost, parts in _lines(case):
                least = (sum(least_seconds(part, recipe, DTYPE) for part in parts) for recipe in rates)
                lines.append((case.name, name, *_amounts(cost), *map(duration, least)))
    return markdown(header, lines)


def _lines(case: Case) -> Iterator[tuple[str, KernelCost, tuple[KernelCost, ...]]]:
    """Name, cost, and the costs whose least times follow each other."""
    costs, floor = account(case, DTYPE)
    for cost in costs:
        yield f"`{cost.kernel}`", cost, (cost,)
    yield "sum", total(case.name, costs), tuple(costs)
    yield "floor", floor, (floor,)


def _amounts(cost: KernelCost) -> tuple[str, str, str]:
    return f"{cost.bytes_read / 1e6:.2f} MB", f"{cost.bytes_written / 1e6:.2f} MB", f"{cost.operations / 1e9:.2f} G"


if __name__ == "__main__":
    sys.stdout.write(page() + "\n")
