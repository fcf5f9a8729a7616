"""One run on a GPU, read from its file of figures and checked before anything of it goes into a document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.figures import Figure, read_figures
from benchmarks.gpu_machine import find_rates
from benchmarks.recorded_figures import (
    Batch,
    Counter,
    FirstToken,
    Forks,
    Gate,
    Head,
    Kind,
    Machine,
    Overlap,
    Passkey,
    Problem,
    RecordError,
    StepEnd,
    Timed,
    Trial,
    read,
)
from sala_export.errors import RequestError

T = TypeVar("T")

_COMMIT = re.compile(r"([0-9a-f]{7,40})(\+|-dirty)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The first line: where the run was, and of what."""

    gpu: str
    """As the driver names it."""
    recipe: str
    """Name of the recipe of this GPU. Without one, the GPU's name as a file name may have it."""
    compute_capability: str
    torch: str
    triton: str
    driver: str | None
    """None where there was no nvidia-smi."""
    clocks: Mapping[str, str]
    """Of nvidia-smi, when the run began."""
    commit: str
    """At most twelve digits, and `-dirty` if files differed from it."""
    started: datetime
    """UTC."""

    @property
    def file_name(self) -> str:
        """Of the raw figures in `benchmarks/results/`."""
        return f"{self.recipe}-{self.started:%Y-%m-%dT%H%M%S}-{self.commit}.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Times that no document gets, because the gate of their operator in the same file did not pass."""

    way: str
    operator: str
    dtype: str
    why: str
    figures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """All of one file. Times of operators without a green gate are in `left_out` only."""

    text: str
    """Its whole lines."""
    header: Header
    gates: tuple[Gate, ...]
    kernels: tuple[Timed, ...]
    trials: tuple[Trial, ...]
    left_out: tuple[LeftOut, ...]
    first_tokens: tuple[FirstToken, ...]
    passkeys: tuple[Passkey, ...]
    forks: tuple[Forks, ...]
    batches: tuple[Batch, ...]
    overlaps: tuple[Overlap, ...]
    counters: tuple[Counter, ...]
    steps: tuple[StepEnd, ...]
    problems: tuple[str, ...]


def read_run(path: Path) -> Run:
    """Read and check a file of figures.

    Of what was measured twice the last one counts. A last line that was cut off is left out. The header comes last, so
    that the figures of a file which is refused as a rehearsal are well formed.

    Raises: FiguresError or RecordError, in one line, for figures that no document may get.
    """
    figures = read_figures(path)
    _require_one_header(path, figures)

    def of_kind(kind: str, model: type[Kind]) -> tuple[Kind, ...]:
        places = ((f"{path}:{number}", figure) for number, figure in enumerate(figures, 1))
        return tuple(read(model, place, figure) for place, figure in places if figure["kind"] == kind)

    gates = of_kind("gate", Gate)
    timed = _last(of_kind("kernel", Timed), lambda t: (t.way, t.row.case, t.row.dtype, t.row.what))
    tried = _last(of_kind("tuning", Trial), lambda t: (t.kernel, t.way, t.dtype, t.candidate, t.case))
    left_out = _left_out(gates, (*timed, *tried))
    red = {(one.way, one.operator, one.dtype) for one in left_out}
    # Those of a model that disagrees with its reference are told among the problems.
    first_tokens = [one for one in of_kind("first_token", FirstToken) if one.agrees]
    run = Run(
        text=path.read_text(encoding="utf-8").rpartition("\n")[0] + "\n",
        gates=gates,
        kernels=tuple(time for time in timed if time.gate not in red),
        trials=tuple(time for time in tried if time.gate not in red),
        left_out=left_out,
        first_tokens=_last(first_tokens, lambda f: (f.runtime, f.precision, f.layers, f.context)),
        passkeys=_last(of_kind("passkey", Passkey), lambda p: (p.runtime, p.length)),
        forks=_last(of_kind("forks", Forks), lambda f: (f.runtime, f.model, f.layers, f.tokens)),
        batches=_last(of_kind("batch", Batch), lambda b: (b.runtime, b.model, b.layers, b.context, b.sessions)),
        overlaps=_last(of_kind("overlap", Overlap), lambda o: (o.model, o.context, o.layer, o.neighbours)),
        counters=_last(of_kind("profile", Counter), lambda c: (c.kernel, c.metric)),
        steps=_last(of_kind("step", StepEnd), lambda s: s.name),
        problems=tuple(f"{one.where}: {one.message}" for one in of_kind("problem", Problem)),
        header=_header(path, figures[0]),
    )
    if not run.left_out and not any(getattr(run, name) for name in TOPICS):
        raise RecordError(f"{path}: holds no measured figure")
    return run


def _require_one_header(path: Path, figures: Sequence[Figure]) -> None:
    heads = [number for number, figure in enumerate(figures, 1) if figure["kind"] == "run"]
    if not heads or heads[0] != 1:
        raise RecordError(f"{path}: its first line is not the header of a run (kind run)")
    if len(heads) > 1:
        raise RecordError(f"{path}:{heads[1]}: a second run begins here: give each run a file of its own")


def _header(path: Path, figure: Figure) -> Header:
    head = read(Head, f"{path}:1", figure)
    if head.rehearsal:
        raise RecordError(f"{path}: figures of a rehearsal: no document gets them")
    if not head.machine.gpu or not head.machine.compute_capability:
        raise RecordError(f"{path}: names no GPU, so nothing in it was measured on one")
    if not head.commit:
        raise RecordError(f"{path}: names no commit: nobody could tell what was measured")
    clocks = _nvidia_smi(head.machine)
    return Header(
        gpu=head.machine.gpu,
        recipe=_recipe_name(head.machine.gpu),
        compute_capability=head.machine.compute_capability,
        torch=head.machine.torch,
        triton=head.machine.triton,
        driver=clocks.get("driver"),
        clocks=clocks,
        commit=_commit(path, head.commit),
        started=head.started.astimezone(UTC),
    )


def _nvidia_smi(machine: Machine) -> Mapping[str, str]:
    """What nvidia-smi said of the GPU; empty where it said nothing."""
    ours = [told for told in machine.gpus if told.get("name") == machine.gpu] or machine.gpus
    return ours[0] if ours else {}


def _recipe_name(gpu: str) -> str:
    try:
        return find_rates(None, gpu).name
    except RequestError:
        return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def _commit(path: Path, text: str) -> str:
    found = _COMMIT.fullmatch(text)
    if found is None:
        raise RecordError(f"{path}:1: commit is {text!r:.60}: must be 7 to 40 hexadecimal digits")
    return found[1][:12] + ("-dirty" if found[2] else "")


def _last(found: Sequence[T], key: Callable[[T], object]) -> tuple[T, ...]:
    """Without those that were measured again later, at the place of the first."""
    return tuple({key(one): one for one in found}.values())


def why_not(gates: Sequence[Gate], way: str, operator: str, dtype: str) -> str | None:
    """Why no time of an operator may be shown; None if every check of it passed."""
    ours = [gate for gate in gates if (gate.way, gate.operator, gate.dtype) == (way, operator, dtype)]
    if not ours:
        return "no gate in the same file"
    return next((gate.told for gate in ours if not gate.passed), None)


def _left_out(gates: Sequence[Gate], times: Sequence[Timed | Trial]) -> tuple[LeftOut, ...]:
    """The operators whose times no document gets."""
    keys = [time.gate for time in times]
    return tuple(
        LeftOut(way=key[0], operator=key[1], dtype=key[2], why=why, figures=keys.count(key))
        for key in dict.fromkeys(keys)
        if (why := why_not(gates, *key))
    )


TOPICS: Mapping[str, Callable[[Any], object]] = {
    "kernels": lambda timed: timed.way,
    "gates": lambda gate: gate.way,
    "trials": lambda trial: (trial.kernel, trial.way, trial.dtype),
    "overlaps": lambda overlap: overlap.model,
    "counters": lambda counter: counter.kernel,
    "first_tokens": lambda row: (row.runtime, row.precision, row.layers),
    "passkeys": lambda passkey: passkey.runtime,
    "forks": lambda forks: (forks.runtime, forks.model, forks.layers),
    "batches": lambda batch: (batch.runtime, batch.model, batch.layers),
}
"""What of a run a newer one replaces, by its field: everything of the same topic together."""


def newest(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs by GPU and the newest first, each with what no newer one of its GPU has; without those that have nothing."""
    shown = []
    seen: set[tuple[object, ...]] = set()
    by_age = sorted(runs, key=lambda run: run.header.started, reverse=True)
    for run in sorted(by_age, key=lambda run: run.header.recipe):
        gpu = run.header.recipe
        left = {
            name: tuple(one for one in getattr(run, name) if (gpu, name, topic(one)) not in seen)
            for name, topic in TOPICS.items()
        }
        left_out = tuple(one for one in run.left_out if (gpu, "kernels", one.way) not in seen)
        seen |= {(gpu, name, topic(one)) for name, topic in TOPICS.items() for one in getattr(run, name)}
        if left_out or any(left.values()):
            shown.append(replace(run, left_out=left_out, **left))
    return tuple(shown)
