"""The first line of a file of figures: which GPU, which driver, which code. Needs neither torch nor a GPU."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from benchmarks.figures import FigureWriter
from sala_export.machine import as_json, describe_machine


def describe_run() -> dict[str, Any]:
    """Everything that a time depends on beside the code, as plain JSON values; `gpu` is None where there is none."""
    machine = describe_machine()
    first = machine.gpus[0] if machine.gpus else {}
    return {
        "gpu": first.get("name"),
        "compute_capability": first.get("compute_capability"),
        "torch": version("torch"),
        "triton": version("triton"),
        **as_json(machine),
    }


def write_header(writer: FigureWriter) -> bool:
    """Write the `run` figure and return whether it is a rehearsal: without a GPU there are no results."""
    machine = describe_run()
    is_rehearsal = machine["gpu"] is None
    started = datetime.now(UTC).isoformat(timespec="seconds")
    writer.write("run", machine=machine, commit=machine["commit"], started=started, rehearsal=is_rehearsal)
    return is_rehearsal


def start_figures(options: argparse.Namespace) -> FigureWriter:
    """The writer that `figures.add_figure_options` asks for; a new file begins with this machine."""
    writer = FigureWriter(options.figures, options.step)
    if options.figures is not None and not options.figures.is_file():
        write_header(writer)
    return writer
