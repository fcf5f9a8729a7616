"""The first minutes on a GPU: check the kernels, time them, run the model, and write down everything that is found.

    python -m benchmarks.first_light --output DIR [--minutes 9.5] [--steps A,B,C] [--plan]

The steps run one after the other, the most telling first. Each has a process and a time limit of its own, and a step
that fails or hangs leaves the others alone. Every figure is on disk as soon as it is measured, in DIR/figures.jsonl.
DIR/log.txt has all that the steps print, DIR/summary.txt the table that comes last. `--plan` prints what would run in
so many minutes and what would be left out. `python -m benchmarks.record DIR` puts the figures into the documents.

Exit code: 0, or 2 if a step failed, was stopped, or was left out for want of time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, FiguresError, FigureWriter, read_figures
from benchmarks.first_light_steps import Step, chosen, planned
from benchmarks.run_header import write_header
from benchmarks.tables import duration

ROOT = Path(__file__).parents[1]
FIGURES, LOG, SUMMARY = "figures.jsonl", "log.txt", "summary.txt"
CLOSING_SECONDS = 10.0
"""Kept of the minutes for stopping the last step and for the table."""
_SECONDS_TO_END = 3.0
"""What a step has between being told to end and being killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a step went."""

    step: Step
    state: str
    """`passed`, `FAILED`, `STOPPED` at its time limit, or `LEFT OUT`."""
    seconds: float = 0.0
    message: str = ""
    """What a step that did not pass said last."""
    figures: int = 0

    @property
    def line(self) -> str:
        took = f" after {self.seconds:.0f} s" if self.seconds else ""
        told = f": {self.message}" if self.message else f", {self.figures} figures"
        return f"{self.step.letter}  {self.state}{took}{told}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A folder that steps write to, and the time they have."""

    folder: Path
    deadline: float
    """In `time.monotonic`."""

    @property
    def figures(self) -> Path:
        return self.folder / FIGURES

    @property
    def seconds_left(self) -> float:
        return self.deadline - CLOSING_SECONDS - time.monotonic()

    def outcomes(self, steps: Sequence[Step]) -> Iterator[Outcome]:
        """Run the steps for which there is time; each is written down when it has ended."""
        for step in steps:
            outcome = self._run(step) if step.seconds <= self.seconds_left else Outcome(step=step, state="LEFT OUT")
            FigureWriter(self.figures, step.letter).write(
                "step",
                name=step.name,
                state=outcome.state,
                seconds=round(outcome.seconds, 1),
                estimate_seconds=step.seconds,
                message=outcome.message,
            )
            yield outcome

    def _run(self, step: Step) -> Outcome:
        print(f"{step.letter}  {step.name}, about {step.seconds} s", flush=True)
        before, start = _lines(self.figures), time.monotonic()
        log = self.folder / LOG
        with log.open("a", encoding="utf-8") as output:
            output.write(f"\n=== {step.letter}: {' '.join(step.command)}\n")
            output.flush()
            begins = output.tell()
            code = _run_within(step.arguments(self.figures), min(step.limit, self.seconds_left), output.fileno())
        state = {0: "passed", None: "STOPPED"}.get(code, "FAILED")
        message = "" if code == 0 else _last_word(log, begins) or f"exit code {code}, nothing printed"
        return Outcome(
            step=step,
            state=state,
            seconds=time.monotonic() - start,
            message=message,
            figures=_lines(self.figures) - before,
        )


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _run_within(command: Sequence[str], seconds: float, output: int) -> int | None:
    """Exit code of a program; None if it had to be stopped, with all that it has started."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a program's whole group: what it has started may still hold the GPU."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SECONDS_TO_END)


def _last_word(log: Path, begins: int) -> str:
    """The last line that names an error, else the last line."""
    with log.open("rb") as file:
        file.seek(begins)
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip()[:300] for line in reversed(text.split("\n")) if line.strip()]
    errors = (line for line in lines if re.match(r"(error|[\w.]*Error): ", line, re.IGNORECASE))
    return next(errors, lines[0] if lines else "")


def plan_text(steps: Sequence[Step], minutes: float) -> str:
    """What runs in so many minutes: when each step starts, and what it should take."""
    available = 60 * minutes - CLOSING_SECONDS
    lines = []
    for step, start in planned(steps, available):
        when = "left out" if start is None else f"{start:.0f} s"
        lines.append(f"{step.letter}  {when:>8}  {step.seconds:>4} s  (at most {step.limit:>3} s)  {step.name}")
    total = sum(step.seconds for step, start in planned(steps, available) if start is not None)
    return "\n".join(
        [
            "   starts at    takes (as on an H200)",
            *lines,
            f"{total} s of {60 * minutes:.0f} s; the last steps are the first to be left out",
        ]
    )


def summary(outcomes: Sequence[Outcome], figures: Sequence[Figure]) -> str:
    """The steps, then what matters most of the figures."""
    head = next((figure for figure in figures if figure["kind"] == "run"), {})
    machine = head.get("machine", {})
    where = machine.get("gpu") or "NO GPU: a rehearsal, whose figures are no results"
    lines = [f"{where}, commit {head.get('commit')}, torch {machine.get('torch')}, Triton {machine.get('triton')}"]
    lines += [outcome.line for outcome in outcomes]
    lines += [line for kind, told in _TOLD.items() for line in map(told, _of_kind(figures, kind)) if line]
    states = Counter(outcome.state for outcome in outcomes)
    return "\n".join([*lines, "steps: " + ", ".join(f"{count} {state}" for state, count in states.items())])


def _of_kind(figures: Sequence[Figure], kind: str) -> list[Figure]:
    return [figure for figure in figures if figure["kind"] == kind]


def _gate_line(figure: Figure) -> str:
    if figure["passed"]:
        return ""
    where = f"{figure['way']} {figure['operator']} {figure['check']} {figure['dtype']}"
    if figure["limit"] is None:
        return f"RED  {where}: could not run: {figure['message']}"
    return f"RED  {where}: {figure['tensor']} off by {figure['error']}, allowed {figure['limit']}"


def _kernel_line(figure: Figure) -> str:
    if figure["what"] != "operator in a CUDA graph" or figure["dtype"] != "bfloat16":
        return ""
    floor = figure["floor_seconds"]
    beside = f", {figure['seconds'] / floor:.2f} x its floor" if floor else ""
    return f"{figure['way']:8} {figure['case']}: {duration(figure['seconds'])}{beside}"


def _first_token_line(figure: Figure) -> str:
    token = figure["token_seconds"]
    decode = f", {1e3 * token['median']:.2f} ms a token" if token else ""
    return f"9B {figure['context']} tokens: first token {figure['first_token_seconds']['median']:.2f} s{decode}"


def _passkey_line(figure: Figure) -> str:
    found = figure["found"]
    return f"passkeys at {figure['length']}: {sum(found)} of {len(found)} in {figure['prefill_seconds']:.1f} s"


_TOLD = {
    "gate": _gate_line,
    "kernel": _kernel_line,
    "first_token": _first_token_line,
    "passkey": _passkey_line,
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; exits with 2 if they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_light", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="new folder to write figures, log and table to")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="time that all steps together may take (default: 9.5)"
    )
    parser.add_argument("--steps", help="letters of the steps to run, e.g. A,B. --plan lists them (default: all)")
    parser.add_argument(
        "--plan", action="store_true", help="print which steps would run and when, without running them"
    )
    options = parser.parse_args(arguments)
    if options.minutes * 60 <= CLOSING_SECONDS:
        parser.error(f"--minutes {options.minutes:g}: give at least 1")
    try:
        options.steps = chosen(options.steps)
    except ValueError as error:
        parser.error(f"--steps: {error}")
    if options.output is None and not options.plan:
        parser.error("--output DIR is missing: say where the figures go")
    if options.output is not None and _holds_something(options.output):
        parser.error(f"--output {options.output}: is there already and not empty: name a new folder")
    return options


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.plan:
        print(plan_text(options.steps, options.minutes))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(folder=options.output.resolve(), deadline=start + 60 * options.minutes)
    write_header(FigureWriter(run.figures))
    outcomes = []
    for outcome in run.outcomes(options.steps):
        print(outcome.line, flush=True)
        outcomes.append(outcome)
    try:
        text = summary(outcomes, read_figures(run.figures))
    except FiguresError as error:
        text = "\n".join([*(outcome.line for outcome in outcomes), f"error: {error}"])
    (run.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    return 0 if all(outcome.state == "passed" for outcome in outcomes) else 2


if __name__ == "__main__":
    sys.exit(main())
