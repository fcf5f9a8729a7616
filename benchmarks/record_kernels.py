"""The page docs/kernel_measurements.md: times of kernels and operators on every GPU that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from benchmarks.expectations import Comparison, Expectations, Place, comparison_cells, far_lines
from benchmarks.kernel_tables import GOALS, HEADER, row_cells
from benchmarks.record_common import course, headline, plain
from benchmarks.recorded_figures import Overlap, Timed, Trial
from benchmarks.recorded_run import Run
from benchmarks.tables import duration, markdown, percent
from sala_export.specs import format_tokens

CODE = {"shipped": "shipped cubins", "jit": "JIT", "jit-sm86": "JIT, path of SM86"}
"""How a document says which code ran: the shipped one, or Triton's on that machine."""
PREDICTED_WAYS = ("shipped", "jit")
PREDICTED_DTYPE = "bfloat16"
BEST_TRIALS = 3

NOTHING = """\
**No GPU was at hand, so none of these kernels has been timed.** On a machine with an NVIDIA GPU, run

```
python -m benchmarks.first_light --output figures
```

Bring the folder back and run `python -m benchmarks.record figures`. That writes the tables here, with the GPU named.
Tiles are chosen by static gates until then."""

LEGEND = """\
Each table has one line for a call. *What* is an operator, one of its kernels, or the peer. *Least time* is the floor of
an operator, and for a kernel what its bytes and operations take at the GPU's peak rates. Spread, roofline and floor are
explained in [`kernels.md`](kernels.md#what-is-measured-and-how). *Predicted* figures were worked out before any GPU was
at hand ([`kernel_predictions.md`](kernel_predictions.md)). They are for bf16 on the GPU's own path."""


def has_kernels(run: Run) -> bool:
    """Whether there is anything of a run in docs/kernel_measurements.md."""
    return bool(run.kernels or run.gates or run.left_out or run.trials or run.overlaps or run.counters)


def kernels_section(runs: Sequence[Run], expectations: Expectations) -> tuple[str, list[Comparison]]:
    """The marked part of the page, and all measurements that have a prediction."""
    shown = [run for run in runs if has_kernels(run)]
    blocks = [LEGEND if shown else NOTHING]
    found: list[Comparison] = []
    for run in shown:
        comparisons = kernel_comparisons(run, expectations)
        found += comparisons.values()
        blocks += [headline(run), *_times(run, comparisons, expectations), *_gates(run), *_left_out(run)]
        blocks += [*_tuning(run.trials), *_overlaps(run.overlaps), *_counters(run), *course(run)]
    return "\n\n".join(blocks), found


def name_of(timed: Timed) -> str:
    """What a text calls a measurement."""
    return f"{timed.row.case}, {timed.row.what}, {CODE[timed.way]}"


def kernel_comparisons(run: Run, expectations: Expectations) -> dict[str, Comparison]:
    """What was measured and predicted, by the name that a text gives it."""
    found = {}
    for timed in run.kernels:
        if timed.way in PREDICTED_WAYS and timed.row.dtype == PREDICTED_DTYPE:
            place = Place(run.header.recipe, timed.row.case, timed.row.what)
            if comparison := expectations.compare(place, timed.row.seconds):
                found[name_of(timed)] = comparison
    return found


def _times(run: Run, comparisons: dict[str, Comparison], expectations: Expectations) -> list[str]:
    if not run.kernels:
        return []
    header = (*HEADER[:2], "code", *HEADER[2:5], "least time", *HEADER[5:], "predicted", "measured / predicted")
    lines = []
    for timed in sorted(run.kernels, key=lambda one: list(CODE).index(one.way)):
        row = timed.row
        cells = row_cells(row, [other.row for other in run.kernels if other.way == timed.way])
        least = row.floor_seconds if row.floor_seconds is not None else row.roofline_seconds
        compared = comparisons.get(name_of(timed)) if row.dtype == PREDICTED_DTYPE else None
        least_cell = "" if least is None else duration(least)
        code = CODE[timed.way]
        lines.append((*cells[:2], code, *cells[2:5], least_cell, *cells[5:], *comparison_cells(compared)))
    return [markdown(header, lines), *goals_block(run), *far_block(run, comparisons, expectations)]


def far_block(run: Run, comparisons: dict[str, Comparison], expectations: Expectations) -> list[str]:
    """What a document says of measurements beside predictions: those far apart, none, or that nothing was predicted."""
    if not expectations.knows(run.header.recipe):
        return ["Nothing was predicted for this GPU."]
    if not comparisons:
        return ["Nothing of this was predicted."]
    far = far_lines(comparisons, expectations)
    if not far:
        return ["No measurement differs from its prediction by more than a third."]
    return ["Where measurement and prediction differ by more than a third:\n\n" + "\n".join(far)]


def goals_block(run: Run) -> list[str]:
    """Which goals a run met, in a list; nothing can be told of a run without kernels."""
    lines = []
    for goal in GOALS:
        found = {way: goal.line([one.row for one in run.kernels if one.way == way]) for way in PREDICTED_WAYS}
        told = [f"* {line} ({CODE[way]})" for way, line in found.items() if line is not None]
        lines += told or [f"* not measured: {goal.text}"]
    return ["Goals, which are stated for an H100:\n\n" + "\n".join(lines)]


def _gates(run: Run) -> list[str]:
    """For each operator, type and code, the tensor that is furthest off, in parts of what is allowed."""
    if not run.gates:
        return []
    lines = []
    for (way, operator, dtype), group in groupby(
        sorted(run.gates, key=lambda gate: (list(CODE).index(gate.way), gate.operator, gate.dtype)),
        key=lambda gate: (gate.way, gate.operator, gate.dtype),
    ):
        gates = list(group)
        red = [gate for gate in gates if not gate.passed]
        worst = max(red or gates, key=lambda gate: gate.of_limit)
        verdict = f"**{len(red)} of {len(gates)} failed**" if red else f"all {len(gates)} passed"
        tensor = plain(f"{worst.check}, {worst.tensor}" if worst.tensor else worst.told)
        numbers = (f"{worst.error:.2g}", f"{worst.limit:.2g}", f"{worst.of_limit:.2g}") if worst.tensor else ("",) * 3
        lines.append((operator, dtype, CODE[way], verdict, tensor, *numbers))
    header = ("operator", "type", "code", "tensors", "furthest off", "error", "limit", "error of limit")
    return [f"Results beside the float64 reference:\n\n{markdown(header, lines)}"]


def _left_out(run: Run) -> list[str]:
    if not run.left_out:
        return []
    lines = [
        f"* {one.operator}, {one.dtype}, {CODE[one.way]}: {one.figures} times left out: {plain(one.why)}"
        for one in run.left_out
    ]
    return ["**Red or not checked**, so that their times are not shown:\n\n" + "\n".join(lines)]


def _tuning(trials: Sequence[Trial]) -> list[str]:
    """The best candidates of each kernel, by the mean over its calls of their times relative to the best there."""
    lines = []
    for kernel in dict.fromkeys(trial.kernel for trial in trials):
        ours = [trial for trial in trials if trial.kernel == kernel]
        ranked = _ranking(ours)
        for candidate in list(ranked)[:BEST_TRIALS]:
            of_candidate = [trial for trial in ours if trial.candidate == candidate]
            registers = of_candidate[0].registers
            times = "; ".join(f"{trial.case}: {duration(trial.seconds)}" for trial in of_candidate)
            cells = (f"`{candidate}`", "" if registers is None else str(registers), f"{ranked[candidate]:.3f}", times)
            lines.append((kernel, *cells))
    header = ("kernel", "candidate", "registers", "relative time", "in its calls")
    return [f"Best tiles and constants that were tried:\n\n{markdown(header, lines)}"] if lines else []


def _ranking(trials: Sequence[Trial]) -> dict[str, float]:
    """Relative times of the candidates that were timed in every call, best first."""
    cases = dict.fromkeys(trial.case for trial in trials)
    best = {case: min(trial.seconds for trial in trials if trial.case == case) for case in cases}
    scores: dict[str, list[float]] = {}
    for trial in trials:
        scores.setdefault(trial.candidate, []).append(trial.seconds / best[trial.case])
    complete = {name: sum(ratios) / len(ratios) for name, ratios in scores.items() if len(ratios) == len(cases)}
    return dict(sorted(complete.items(), key=lambda item: item[1]))


def _overlaps(overlaps: Sequence[Overlap]) -> list[str]:
    """Chosen blocks that neighbours share, mean over the layers."""
    lines = []
    for model, context, neighbours in dict.fromkeys((one.model, one.context, one.neighbours) for one in overlaps):
        group = [one for one in overlaps if (one.model, one.context, one.neighbours) == (model, context, neighbours)]
        chosen = sum(one.chosen_blocks for one in group) / len(group)
        union = sum(one.union_blocks for one in group) / len(group)
        cells = (model, format_tokens(context), str(len(group)), str(neighbours), f"{chosen:.1f}", f"{union:.1f}")
        lines.append((*cells, *_sharing(neighbours, chosen, union)))
    header = ("model", "context", "layers", "neighbours", "blocks of one", "blocks of all", "shared", "fewer bytes")
    if not lines:
        return []
    return [
        "Chosen blocks of neighbouring tokens, which decide how many bytes a gather over their union saves:\n\n"
        + markdown(header, lines)
    ]


def _sharing(neighbours: int, chosen: float, union: float) -> tuple[str, str]:
    """The share of a token's blocks that the next one has too, if all were alike, and bytes saved by the union."""
    if neighbours < 2 or not chosen or not union:
        return "", ""
    shared = 1 - (union / chosen - 1) / (neighbours - 1)
    return percent(shared), f"{neighbours * chosen / union:.2f} x"


def _counters(run: Run) -> list[str]:
    lines = [(one.kernel, one.metric, f"{one.value:.6g}", one.unit) for one in run.counters]
    return [f"Counters of ncu:\n\n{markdown(('kernel', 'counter', 'value', 'unit'), lines)}"] if lines else []
