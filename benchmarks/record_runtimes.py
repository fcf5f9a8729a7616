"""The results of docs/runtimes.md: the whole model on every GPU that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.expectations import Comparison, Expectations, Place, comparison_cells
from benchmarks.record_common import course, headline
from benchmarks.record_kernels import far_block, has_kernels
from benchmarks.recorded_figures import FirstToken, Runs
from benchmarks.recorded_run import Run
from benchmarks.tables import duration, markdown, percent
from sala_export.specs import format_bytes, format_tokens

FIRST_TOKEN_GOALS = {128 << 10: 1.6, 1 << 20: 1.8}
"""Most times the floor on an H100, by context."""
TOKEN_GOAL = 1.4

NOTHING = """\
**No GPU was at hand, so nothing has been measured.** On a machine with an NVIDIA GPU, run
`python -m benchmarks.first_light --output figures`. Bring the folder back and run
`python -m benchmarks.record figures`. That writes the tables here. The predictions that they will
stand beside are in [`kernel_predictions.md`](kernel_predictions.md)."""


def runtimes_section(runs: Sequence[Run], expectations: Expectations) -> tuple[str, list[Comparison]]:
    """The marked part of the document, and all measurements that have a prediction."""
    shown = [run for run in runs if run.first_tokens or run.passkeys or run.forks or run.batches]
    blocks = [] if shown else [NOTHING]
    found: list[Comparison] = []
    for run in shown:
        comparisons = _comparisons(run, expectations)
        found += comparisons.values()
        blocks += [
            headline(run),
            *_first_tokens(run, comparisons, expectations),
            *_passkeys(run),
            *_forks(run),
            *_batches(run),
        ]
        blocks += [] if has_kernels(run) else course(run)
    return "\n\n".join(blocks), found


def _first_name(row: FirstToken) -> str:
    return f"{row.runtime}, {row.precision}, first token after {format_tokens(row.context)}"


def _token_name(row: FirstToken) -> str:
    return f"{row.runtime}, {row.precision}, each further token after {format_tokens(row.context)}"


def _comparisons(run: Run, expectations: Expectations) -> dict[str, Comparison]:
    """Of the published model alone: no other was predicted."""
    found = {}
    for row in run.first_tokens:
        call = f"prompt of {format_tokens(row.context)}"
        timed = {_first_name(row): ("first token", row.first), _token_name(row): ("each further token", row.token)}
        for name, (what, runs) in timed.items():
            if row.published and runs is not None:
                place = Place(run.header.recipe, call, f"{what}, {row.precision}")
                if comparison := expectations.compare(place, runs.median):
                    found[name] = comparison
    return found


def _first_tokens(run: Run, comparisons: dict[str, Comparison], expectations: Expectations) -> list[str]:
    rows = run.first_tokens
    if not rows:
        return []
    gpus = sorted({gpu for row in rows for gpu in row.published})
    header = ("runtime", "precision", "layers", "context", "first token", "spread", "tokens/s", "floor", "x floor")
    header += ("predicted", "measured / predicted", *(f"published, {gpu}" for gpu in gpus))
    lines = []
    for row in rows:
        beside = comparison_cells(comparisons.get(_first_name(row)) if row.published else None)
        published = (duration(row.published[gpu]) if gpu in row.published else "" for gpu in gpus)
        rate = f"{row.context / row.first.median:,.0f}"
        lines.append((*_model(row), *_times(row.first), rate, *_floor(row.first), *beside, *published))
    blocks = [markdown(header, lines), _tokens(rows, comparisons)]
    return [*blocks, *_goals(rows), *far_block(run, comparisons, expectations)]


def _tokens(rows: Sequence[FirstToken], comparisons: dict[str, Comparison]) -> str:
    header = ("runtime", "precision", "layers", "context", "each further token", "spread", "floor", "x floor")
    header += ("predicted", "measured / predicted", "device memory", "predicted memory", "host memory")
    lines = []
    for row in rows:
        times = (*_times(row.token), *_floor(row.token)) if row.token else ("", "", "", "")
        beside = comparison_cells(comparisons.get(_token_name(row)) if row.published else None)
        memory = (row.device_bytes, row.predicted_bytes, row.host_bytes)
        lines.append((*_model(row), *times, *beside, *("" if size is None else format_bytes(size) for size in memory)))
    return markdown(header, lines)


def _model(row: FirstToken) -> tuple[str, ...]:
    return row.runtime, row.precision, str(row.layers), format_tokens(row.context)


def _times(runs: Runs) -> tuple[str, str]:
    return duration(runs.median), percent(runs.spread)


def _floor(runs: Runs) -> tuple[str, str]:
    return (duration(runs.floor), f"{runs.median / runs.floor:.2f}") if runs.floor else ("", "")


def _goals(rows: Sequence[FirstToken]) -> list[str]:
    """Of the published model in bf16."""
    lines = []
    for row in rows:
        if not row.published or row.precision != "bf16":
            continue
        if row.context in FIRST_TOKEN_GOALS:
            lines += _goal(_first_name(row), row.first, FIRST_TOKEN_GOALS[row.context])
        if row.token:
            lines += _goal(_token_name(row), row.token, TOKEN_GOAL)
    return ["Goals, which are stated for an H100:\n\n" + "\n".join(lines)] if lines else []


def _goal(name: str, runs: Runs, most: float) -> list[str]:
    if runs.floor is None:
        return []
    ratio = runs.median / runs.floor
    return [f"* {'met' if ratio <= most else 'MISSED'}: {name}: {ratio:.3g} x its floor, at most {most:g}"]


def _passkeys(run: Run) -> list[str]:
    lines = [
        (
            row.runtime,
            format_tokens(row.length),
            f"{sum(row.found)} of {len(row.found)}",
            duration(row.prefill_seconds),
            f"{row.length / row.prefill_seconds:,.0f}",
            duration(row.question_seconds),
        )
        for row in run.passkeys
    ]
    header = ("runtime", "prompt", "found", "prefill", "tokens/s", "one question")
    return [f"Passkeys of the constructed model:\n\n{markdown(header, lines)}"] if lines else []


def _forks(run: Run) -> list[str]:
    lines = [
        (
            row.runtime,
            f"{row.model}, {row.layers} layers",
            format_tokens(row.tokens),
            format_bytes(row.session_bytes),
            duration(row.fork_seconds),
            duration(row.first_answer_seconds),
            format_bytes(row.fork_bytes),
            f"{format_bytes(row.forks_bytes)} for {row.forks}",
            duration(row.rewind_middle_seconds),
        )
        for row in run.forks
    ]
    header = ("runtime", "model", "context", "its caches", "fork", "its first token", "a fork takes", "forks take")
    title = "Forks of a context, each of which answered (`python -m benchmarks.forks`)"
    return [f"{title}:\n\n{markdown((*header, 'rewind to the middle'), lines)}"] if lines else []


def _batches(run: Run) -> list[str]:
    lines = [
        (
            row.runtime,
            f"{row.model}, {row.layers} layers",
            format_tokens(row.context),
            str(row.sessions),
            f"{row.tokens_per_second:.1f}",
            f"{row.tokens_per_second / row.alone_tokens_per_second:.2f}",
        )
        for row in run.batches
    ]
    header = ("runtime", "model", "longest prompt", "sessions", "tokens/s in all", "x one session alone")
    title = "Sessions that draw together (`python -m benchmarks.batches`)"
    return [f"{title}:\n\n{markdown(header, lines)}"] if lines else []
