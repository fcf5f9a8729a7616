"""What docs/kernels.md shows of each run, a line for a call, and the page docs/kernel_predictions.md."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from benchmarks import kernel_account
from benchmarks.expectations import Expectations, comparison_cells, predictions_table
from benchmarks.gpu_machine import known_gpus
from benchmarks.kernel_measure import OPERATOR, OPERATOR_GRAPH
from benchmarks.kernel_tables import row_cells
from benchmarks.record_common import headline
from benchmarks.record_kernels import NOTHING, goals_block, has_kernels, kernel_comparisons, name_of
from benchmarks.recorded_figures import Timed
from benchmarks.recorded_run import Run
from benchmarks.tables import duration, markdown

WAYS = {"shipped": "shipped", "jit": "JIT"}
"""Ways to compile the operators that are shown, the first one first, and their columns."""

LEGEND = """\
One line for each operator and call. One token is timed as a CUDA graph. *Shipped* is the code of the plugin library,
and *JIT* is what Triton compiled on that machine. A peer is timed beside JIT alone. The parts of roofline and floor are
those of the first of the two that was timed. [`kernel_measurements.md`](kernel_measurements.md) has every kernel, and
how the run went. [`kernel_predictions.md`](kernel_predictions.md) has what was expected, and the account of bytes and
operations behind roofline and floor."""

ACCOUNT = """\
## The account

Bytes of device memory, each distinct byte once per launch, and operations of the tensor-core products in 16 bits and in
int8, by `sala_export/ops/lightning_attention/cost.py` and `sala_export/ops/infllmv2_attention/cost.py`; bf16, batch 1.
They are those of an RTX 5090. Other GPUs gather other numbers of tokens together, and an H100 bounds no scores in int8.
The least times follow from each GPU's own and from its peak rates. They are **predicted**: no kernel reaches them."""


def summary_section(runs: Sequence[Run], expectations: Expectations) -> str:
    """The marked part of docs/kernels.md."""
    shown = [run for run in runs if has_kernels(run)]
    blocks = [LEGEND if shown else NOTHING]
    for run in shown:
        blocks += [headline(run), *_headline_rows(run, expectations), *_verdict(run)]
    return "\n\n".join(blocks)


def _headline_rows(run: Run, expectations: Expectations) -> list[str]:
    """Each operator once for each call, its ways beside each other."""
    comparisons = kernel_comparisons(run, expectations)
    header = (
        "call",
        "type",
        *WAYS.values(),
        "of roofline",
        "of floor",
        "peer is slower than JIT by",
        "predicted",
        "measured / predicted",
    )
    lines = []
    for (case, dtype), by_way in _operators(run.kernels).items():
        first = next(iter(by_way.values()))
        medians = (duration(by_way[way].row.seconds) if way in by_way else "" for way in WAYS)
        peer = next((ratio for timed in by_way.values() if (ratio := _cells(timed, run)[-1])), "")
        beside = comparison_cells(comparisons.get(name_of(first)))
        lines.append((case, dtype, *medians, *_cells(first, run)[5:7], peer, *beside))
    return [markdown(header, lines), *goals_block(run)] if lines else []


def _cells(timed: Timed, run: Run) -> tuple[str, ...]:
    return row_cells(timed.row, [other.row for other in run.kernels if other.way == timed.way])


def _operators(kernels: Sequence[Timed]) -> dict[tuple[str, str], dict[str, Timed]]:
    """For each call and type the operator as each of `WAYS` ran it, as a graph where one was timed."""
    found: dict[tuple[str, str], dict[str, Timed]] = {}
    for way in WAYS:
        for what in (OPERATOR_GRAPH, OPERATOR):
            for timed in kernels:
                if (timed.way, timed.row.what) == (way, what):
                    found.setdefault((timed.row.case, timed.row.dtype), {}).setdefault(way, timed)
    return {
        place: found[place]
        for place in dict.fromkeys((one.row.case, one.row.dtype) for one in kernels)
        if place in found
    }


def _verdict(run: Run) -> list[str]:
    """Whether the results of the kernels were right, in one sentence."""
    if not run.gates:
        return []
    red = sum(not gate.passed for gate in run.gates)
    told = f"**{red} of {len(run.gates)} failed**" if red else f"all {len(run.gates)} are within their limits"
    return [f"Tensors compared with the float64 reference before anything was timed: {told}."]


def predictions_section(expectations: Expectations) -> str:
    """The marked part of docs/kernel_predictions.md."""
    without = [gpu for gpu in known_gpus() if not expectations.knows(gpu)]
    text = f"Predicted by {expectations.source}. Nothing was predicted for {', '.join(without)}."
    source = textwrap.fill(f"{text} A figure of one GPU is never carried over to another.", width=120)
    predicted = f"## Before any measurement\n\n{source}\n\n{predictions_table(expectations)}"
    return f"{predicted}\n\n{ACCOUNT}\n\n{kernel_account.page()}"
