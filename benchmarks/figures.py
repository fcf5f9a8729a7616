"""Figures of a run on a GPU as JSON lines: each is on disk before the next one is measured.

The first line of a file has the kind `run`. Every other line names the step that measured it, its kind, and the fields
of that kind:

* `run`, the whole file: `machine` (`run_header.describe_run`), `commit`, `started`, `rehearsal`
* `step`, a step that has ended or was dropped: `name`, `state`, `seconds`, `estimate_seconds`, `message`
* `gate`, a tensor of an operator beside its float64 reference: `way`, `operator`, `check`, `dtype`, `tensor`, `error`,
  `limit`, `passed`; where the check could not run, `limit` is null, `tensor` is empty, and `message` says why
* `kernel`, a timed launch, operator or peer: `way` and the fields of `kernel_measure.Row`
* `first_token`, a context of `benchmarks.ttft`: those of a context in its JSON, `precision`, `runtime`, `layers`,
  `agrees` (with the reference model)
* `passkey`, a prompt of `benchmarks.passkey`: `length`, `found`, `prefill_seconds`, `question_seconds`, `runtime`
* `forks`, a context of `benchmarks.forks` with forks of it: `runtime`, `model`, `layers`, and the fields of
  `forks.ForkCost`
* `batch`, sessions of `benchmarks.batches` that draw together: `runtime`, `model`, `layers`, `context` (the longest),
  `sessions`, `tokens_per_second` of all of them, `alone_tokens_per_second` of one session by itself
* `overlap`, a part of the context in a layer of `benchmarks.block_overlap`: `model`, `context`, `layer`, `part`,
  `neighbours`, `groups`, `union_blocks`, `chosen_blocks`, `left_share`
* `tuning`, a candidate tile in a call: `way`, `kernel`, `dtype`, `candidate`, `case`, `seconds`, `spread`, `registers`
* `profile`, a counter of `ncu`: `kernel`, `metric`, `value`, `unit`
* `problem`, whatever went wrong: `where`, `message`

The header has `started` as a time by ISO 8601 with its zone, and `rehearsal`, true or false. A gate's `operator` is the
name of a contract (`lightning_attention`), its `dtype` that of a row (`bfloat16`), and its reference is in float64.
`error` is null where what came out was no number. In `overlap`, `chosen_blocks` is the mean of one token, and
`union_blocks` that of as many neighbouring tokens as `neighbours` says. Spreads are relative to the median.

`way` says which code ran: `jit` (compiled on the machine), `jit-sm86` (likewise, as RTX cards multiply) or `shipped`
(the cubins of the plugin library).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = (
    "run",
    "step",
    "gate",
    "kernel",
    "first_token",
    "passkey",
    "forks",
    "batch",
    "overlap",
    "tuning",
    "profile",
    "problem",
)
WAYS = ("jit", "jit-sm86", "shipped")

Figure = Mapping[str, Any]


class FiguresError(Exception):
    """A file of figures that cannot be read, in one line."""


@dataclass(frozen=True, slots=True)
class FigureWriter:
    """Appends figures to a file, as several processes may do: a line is one write. Without a path it writes nothing."""

    path: Path | None
    step: str = ""
    """The letter of the step that measures."""

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line and wait until it is on disk. Raises: ValueError for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(f"{kind} is no kind of figure: choose one of {', '.join(KINDS)}")
        if self.path is None:
            return
        line = json.dumps({"step": self.step, "kind": kind, **fields}, default=str) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def add_figure_options(parser: argparse.ArgumentParser) -> None:
    """Options of every program that measures: where its figures go, and as whose."""
    parser.add_argument("--figures", type=Path, help="append every figure to this file as it comes (JSON lines)")
    parser.add_argument("--step", default="", help="name of the step that the figures belong to")


def read_figures(path: Path) -> tuple[Figure, ...]:
    """All figures of a file, in order. A last line that was cut off while it was written is left out.

    Raises: FiguresError naming file and line if another line is no JSON object with a known kind.
    """
    return tuple(_parsed(path))


def _parsed(path: Path) -> Iterator[Figure]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FiguresError(f"{path}: cannot be read: {error}") from None
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            figure = json.loads(line)
        except json.JSONDecodeError:
            raise FiguresError(f"{path}:{number}: is no JSON: {line[:60]!r}") from None
        if not isinstance(figure, dict) or figure.get("kind") not in KINDS:
            raise FiguresError(f"{path}:{number}: has no known kind: {line[:60]!r}")
        yield figure
