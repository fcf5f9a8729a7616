"""NVIDIA's tools over every launch of the kernels: memory errors, uninitialised reads, and hardware counters.

    python -m benchmarks.gpu_tools memcheck|initcheck|profile [--figures figures.jsonl]

`memcheck` and `initcheck` are those of compute-sanitizer, `profile` is ncu on the kernels that take most of a prefill.
Exit code 2 if something is found, or a tool is missing or fails.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.figures import FigureWriter, add_figure_options
from benchmarks.run_header import describe_run, start_figures

ROOT = Path(__file__).parents[1]
CHECKS = ("memcheck", "initcheck")
PROFILED = ("infllmv2_select_kernel", "infllmv2_attend_kernel", "infllmv2_gather_kernel", "lightning_prefill_kernel")
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "Occupancy", "LaunchStats")
_CALLS = ("-m", "benchmarks.kernels", "--once", "--quick")


class ToolError(Exception):
    """A tool that is missing or fails, in one line."""


def _run(command: Sequence[str], hear: Callable[[str], None]) -> int:
    """Exit code of a tool, each line of which is told as it comes. Raises: ToolError if it is not there."""
    if shutil.which(command[0]) is None:
        raise ToolError(f"{command[0]} is not on PATH: install CUDA's tools")
    # Memory that torch keeps and hands out again would count as written.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            hear(line.rstrip("\n"))
    return process.returncode


def check(tool: str, figures: FigureWriter) -> int:
    """Run compute-sanitizer; returns how many errors it counts. Raises: ToolError."""
    lines: list[str] = []
    told: set[str] = set()

    def hear(line: str) -> None:
        lines.append(line)
        found = finding(*lines[-2:])
        if found is not None and found not in told:
            told.add(found)
            figures.write("problem", where=tool, message=found)
            print(f"{tool}: {found}", flush=True)

    # torch and Triton also ask the driver for what it may not have, which is no error of a kernel.
    quiet = ("--report-api-errors", "no")
    code = _run(["compute-sanitizer", "--tool", tool, *quiet, sys.executable, *_CALLS], hear)
    counted = re.findall(r"ERROR SUMMARY: (\d+) error", "\n".join(lines))
    if not counted:
        raise ToolError(f"compute-sanitizer {tool} ended with code {code} and no summary: {_last(lines)}")
    if code and not int(counted[-1]):
        raise ToolError(f"compute-sanitizer {tool}: the program failed: {_last(lines)}")
    return int(counted[-1])


def finding(line: str, following: str = "") -> str | None:
    """What the first two lines of a report of compute-sanitizer say: what, where, in which kernel. None for others."""
    what, where = (part.removeprefix("=========").strip() for part in (line, following))
    return f"{what} {where}" if re.match(r"(Invalid|Uninitialized|Misaligned)", what) and where else None


def profile(figures: FigureWriter) -> int:
    """Counters of one launch of each of `PROFILED`; returns how many were read. Raises: ToolError."""
    sections = [part for name in _SECTIONS for part in ("--section", name)]
    wanted = f"regex:^({'|'.join(PROFILED)})$"
    only = ("--only", "8K")
    command = ["ncu", "--clock-control", "none", "--csv", "--kernel-name", wanted, "--launch-count", "5", *sections]
    lines: list[str] = []
    code = _run([*command, sys.executable, *_CALLS, *only], lines.append)
    counters = read_counters("\n".join(lines))
    for kernel, metric, value, unit in counters:
        figures.write("profile", kernel=kernel, metric=metric, value=value, unit=unit)
    if code or not counters:
        raise ToolError(f"ncu ended with code {code} and {len(counters)} counters: {_last(lines)}")
    return len(counters)


def read_counters(text: str) -> list[tuple[str, str, float, str]]:
    """Kernel, metric, value and unit of every line of ncu's CSV that has a number."""
    start = text.find('"ID"')
    if start < 0:
        return []
    found = []
    for row in csv.DictReader(io.StringIO(text[start:])):
        value = (row.get("Metric Value") or "").replace(",", "")
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            found.append((row["Kernel Name"].partition("(")[0], row["Metric Name"], float(value), row["Metric Unit"]))
    return found


def _last(lines: Sequence[str]) -> str:
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "nothing printed")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tools", description=__doc__.split("\n")[0])
    parser.add_argument("tool", choices=(*CHECKS, "profile"))
    add_figure_options(parser)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if describe_run()["gpu"] is None:
        print("error: no NVIDIA GPU here: nvidia-smi finds none", file=sys.stderr)
        return 2
    figures = start_figures(options)
    try:
        if options.tool == "profile":
            print(f"{profile(figures)} counters")
            return 0
        errors = check(options.tool, figures)
    except ToolError as error:
        figures.write("problem", where=options.tool, message=str(error))
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.tool}: {errors} errors")
    return 2 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
