"""What the documents say of every run: where and when it was, and how it went."""

from __future__ import annotations

import re

from benchmarks.recorded_run import Run
from benchmarks.tables import duration, markdown

RESULTS = "benchmarks/results"
"""Where the raw figures are, below the checkout."""
_PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")
_ADDRESS = re.compile(r"\b\w+://\S+|\b(?:[a-z0-9-]+\.)+(?:com|dev|io|net|org)\b", re.IGNORECASE)
_LONGEST_MESSAGE = 200


def headline(run: Run) -> str:
    """A heading with the GPU, and a paragraph with everything that its figures depend on."""
    head = run.header
    commit, _, changed = head.commit.partition("-")
    when = f"Measured on {head.started:%Y-%m-%d} at commit `{commit}`{' with changes on top' if changed else ''}"
    versions = [
        f"driver {head.driver}" if head.driver else "driver not known",
        f"torch {head.torch}",
        f"Triton {head.triton}",
        f"compute capability {head.compute_capability}",
    ]
    raw = f"Raw figures: [{head.file_name}](../{RESULTS}/{head.file_name})."
    return f"### {head.gpu}, {head.started:%Y-%m-%d}\n\n{when}: {', '.join(versions)}.{_clocks(run)} {raw}"


def _clocks(run: Run) -> str:
    told = run.header.clocks
    named = {"most_sm_clock_mhz": "SM clock at most {} MHz", "power_limit_watts": "power limit {} W"}
    found = [text.format(told[name]) for name, text in named.items() if name in told]
    return f" {', '.join(found)[:1].upper()}{', '.join(found)[1:]}." if found else ""


def course(run: Run) -> list[str]:
    """How the steps of a run ended, and what went wrong."""
    blocks = []
    if run.steps:
        lines = [
            (
                plain(step.name),
                plain(step.state),
                duration(step.seconds) if step.seconds else "",
                duration(step.estimate_seconds),
                plain(step.message),
            )
            for step in run.steps
        ]
        blocks.append(f"The steps of this run:\n\n{markdown(('step', 'ended', 'took', 'estimate', 'remark'), lines)}")
    if run.problems:
        blocks.append("What went wrong:\n\n" + "\n".join(f"* {plain(problem)}" for problem in run.problems))
    return blocks


def plain(text: str) -> str:
    """A text of the machine as one line of a document: without its folders, without addresses, not too long."""
    one_line = _PATH.sub("", _ADDRESS.sub("(address)", " ".join(text.split())))
    if len(one_line) > _LONGEST_MESSAGE:
        one_line = one_line[: _LONGEST_MESSAGE - 3] + "..."
    return re.sub(r"([|`<\[*_\\])", r"\\\1", one_line)
