"""Results of `benchmarks/kernels.py` for people: the table of docs/kernels.md, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.kernel_measure import OPERATOR, OPERATOR_GRAPH, Row
from benchmarks.tables import duration, markdown, percent

HEADER = ("call", "type", "what", "median", "spread", "of roofline", "of floor", "peer is slower by")


def results_table(rows: Sequence[Row]) -> str:
    """All rows; the ratio to the peer stands beside the operator."""
    return markdown(HEADER, [row_cells(row, rows) for row in rows])


def row_cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """The cells of `HEADER` for one row, whose peer is among all `rows`."""
    peers = [r for r in rows if (r.case, r.dtype) == (row.case, row.dtype) and is_peer(r)]
    ratio = f"{peers[0].seconds / row.seconds:.2f} x" if row.what in (OPERATOR, OPERATOR_GRAPH) and peers else ""
    cells = (row.case, row.dtype, row.what, duration(row.seconds), percent(row.spread))
    return (*cells, percent(row.of_roofline), percent(row.of_floor), ratio)


def is_peer(row: Row) -> bool:
    """Neither ours as a whole nor one of our launches, which all have a roofline."""
    return row.roofline_seconds is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One of the project's goals on an H100, and how to read it off the rows of its case."""

    case: str
    text: str
    unit: str
    bound: float
    is_least: bool
    """The bound is a least value, not a largest one."""
    value: Callable[[Sequence[Row]], float | None]
    """None if a row is missing, such as the peer's."""

    def line(self, rows: Sequence[Row]) -> str | None:
        """What was found, in one line; None if one of the rows that it needs was not measured."""
        found = self.value([row for row in rows if row.case == self.case and row.dtype == "bfloat16"])
        if found is None:
            return None
        is_met = found >= self.bound if self.is_least else found <= self.bound
        side = "at least" if self.is_least else "at most"
        return f"{'met' if is_met else 'MISSED'}: {self.text}: {found:.3g} {self.unit}, {side} {self.bound:g}"


def _seconds(rows: Sequence[Row], what: str) -> float | None:
    return next((row.seconds for row in rows if row.what == what), None)


def _against_peer(rows: Sequence[Row]) -> float | None:
    peer, ours = next((row.seconds for row in rows if is_peer(row)), None), _seconds(rows, OPERATOR)
    return peer / ours if peer and ours else None


def _over_floor(rows: Sequence[Row]) -> float | None:
    of_floor = next((row.of_floor for row in rows if row.what == OPERATOR_GRAPH), None)
    return 1 / of_floor if of_floor else None


def _milliseconds(what: str) -> Callable[[Sequence[Row]], float | None]:
    def value(rows: Sequence[Row]) -> float | None:
        seconds = _seconds(rows, what)
        return 1e3 * seconds if seconds else None

    return value


GOALS = (
    Goal(
        case="Lightning, chunk of 8K",
        text="speed of Lightning prefill with norms, RoPE and gate over chunk_simple_gla",
        unit="x",
        bound=1.5,
        is_least=True,
        value=_against_peer,
    ),
    Goal(
        case="InfLLM-v2, 128K at once",
        text="stage 1 of a prompt of 128K",
        unit="ms per layer",
        bound=20,
        is_least=False,
        value=_milliseconds("infllmv2_select_kernel"),
    ),
    Goal(
        case="InfLLM-v2, 128K x 2 at once, 64 blocks",
        text="InfLLM-v2 prefill of 128K x 2 with 64 blocks, selection included",
        unit="ms",
        bound=158.4,
        is_least=False,
        value=_milliseconds(OPERATOR),
    ),
    Goal(
        case="Lightning, one token",
        text="Lightning decode over its floor",
        unit="x",
        bound=2,
        is_least=False,
        value=_over_floor,
    ),
    *(
        Goal(
            case=f"InfLLM-v2, one token after {context}",
            text=f"InfLLM-v2 decode after {context} over its floor",
            unit="x",
            bound=2,
            is_least=False,
            value=_over_floor,
        )
        for context in ("32K", "128K", "1M")
    ),
)
"""InfLLM-v2 with 96 blocks and selection is stated beside its floor by the table itself."""


def goal_lines(rows: Sequence[Row]) -> list[str]:
    """One line for each goal whose case was measured."""
    return [line for line in (goal.line(rows) for goal in GOALS) if line is not None]
