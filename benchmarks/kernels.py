"""The GPU kernels on the GPU present, at the published sizes: each launch, each operator, its peer, and the floor.

    python -m benchmarks.kernels --figures figures.jsonl [--quick] [--only TEXT] [--dtype bf16|fp16|both]
    python -m benchmarks.kernels --tune infllmv2_select_kernel

Every case is printed, and written to the figures, as soon as it is measured. What is measured, and how, is in
docs/kernels.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.figures import FiguresError, FigureWriter, add_figure_options
from benchmarks.gpu_machine import NO_GPU, CaseFailure, find_rates, one_line
from benchmarks.kernel_cases import Case, make_inputs, published_cases
from benchmarks.kernel_gate import red_operators, run_gate
from benchmarks.kernel_measure import Row, Settings, measure, missing_memory
from benchmarks.kernel_tables import goal_lines, results_table
from benchmarks.kernel_timing import GpuTimer, Timer
from benchmarks.kernel_tuning import tunable, tune, tuning_cases
from benchmarks.kernel_ways import Way, bind
from benchmarks.run_header import describe_run, start_figures
from sala_export.errors import SalaError
from sala_export.specs import DType

DTYPES = {"bf16": (DType.BFLOAT16,), "fp16": (DType.FLOAT16,), "both": (DType.BFLOAT16, DType.FLOAT16)}
CASE_SECONDS, QUICK_CASE_SECONDS, TUNING_CASE_SECONDS = 15.0, 3.0, 150.0
"""Of measuring one call, where `--seconds` does not say otherwise."""


class RedGateError(Exception):
    """An operator that differs from its reference, in one line."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; exits with 2 if they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="measure contexts up to 32K only, in few rounds")
    parser.add_argument("--only", help="measure only calls with this in their name, e.g. 'one token'")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="activation type (default: bf16)")
    parser.add_argument("--rounds", type=int, help="number of rounds (default: 20, with --quick 5)")
    parser.add_argument("--seconds", type=float, help="measure for about this long (default: 15 s for each call)")
    parser.add_argument("--gpu", help="recipe with the GPU's peak rates (default: found by the GPU's name)")
    code = parser.add_mutually_exclusive_group()
    code.add_argument(
        "--sm80-path",
        dest="way",
        action="store_const",
        const=Way.JIT_SM86,
        help="use tiles and instructions of SM86 on any GPU: mma.sync, as RTX cards run it",
    )
    code.add_argument(
        "--shipped",
        dest="way",
        action="store_const",
        const=Way.SHIPPED,
        help="time the cubins of the installed plugin library instead of what Triton compiles here",
    )
    parser.add_argument(
        "--no-peers", action="store_true", help="leave out flash-linear-attention and torch's attention"
    )
    parser.add_argument(
        "--gate",
        choices=("stop", "report"),
        default="stop",
        help="if a kernel is wrong, stop, or report by how much and measure the others (default: stop)",
    )
    parser.add_argument(
        "--gate-from", type=Path, help="take the results of benchmarks.kernel_gate from this file, if it has all"
    )
    parser.add_argument("--tune", metavar="KERNEL", choices=tunable(), help=f"try tiles of one of {tunable()}")
    parser.add_argument("--once", action="store_true", help="run every call once for a profiler, and time nothing")
    add_figure_options(parser)
    parser.set_defaults(way=Way.JIT)
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 5 if options.quick else 20
    if options.rounds < 3:
        parser.error(f"--rounds {options.rounds}: a median with a spread needs at least 3")
    if options.seconds is not None and options.seconds <= 0:
        parser.error(f"--seconds {options.seconds}: give more than 0")
    if options.tune and options.way is Way.SHIPPED:
        parser.error("--tune compiles its candidates: leave --shipped out")
    if not chosen_cases(options):
        names = ", ".join(repr(case.name) for case in published_cases(quick=options.quick))
        parser.error(f"--only {options.only}: no call has that in its name; there are {names}")
    return options


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The calls that the options ask for."""
    if options.tune:
        return tuning_cases(options.tune)
    wanted = (options.only or "").lower()
    return [case for case in published_cases(quick=options.quick) if wanted in case.name.lower()]


def case_seconds(options: argparse.Namespace) -> float:
    """What one call may take of the time that there is."""
    if options.seconds is not None:
        return float(options.seconds) / len(chosen_cases(options)) / len(DTYPES[options.dtype])
    if options.tune:
        return TUNING_CASE_SECONDS
    return QUICK_CASE_SECONDS if options.quick else CASE_SECONDS


def measure_all(
    cases: Sequence[tuple[Case, DType]],
    device: torch.device,
    timer: Timer,
    settings: Settings,
    figures: FigureWriter,
) -> tuple[list[Row], bool]:
    """Rows of all calls that fit the memory and run, and whether one failed. Each is told and written as it comes."""
    found: list[Row] = []
    has_failed = False
    for case, dtype in cases:
        name = f"{case.name}, {dtype.value}"
        if reason := missing_memory(case, dtype, free_bytes(device)):
            _problem(figures, f"SKIPPED {name}", reason)
            continue
        print(name, file=sys.stderr, flush=True)
        try:
            measured = measure(case, dtype, device, timer, settings)
        except CaseFailure as error:
            _problem(figures, f"FAILED {name}", one_line(error))
            has_failed = True
            continue
        if measured.peer_problem is not None:
            _problem(figures, f"NO PEER {name}", measured.peer_problem)
        for row in measured.rows:
            figures.write("kernel", way=str(settings.way), **asdict(row))
        found += measured.rows
    return found, has_failed


def _problem(figures: FigureWriter, where: str, message: str) -> None:
    print(f"{where}: {message}", file=sys.stderr, flush=True)
    figures.write("problem", where=where, message=message)


def free_bytes(device: torch.device) -> int:
    """Device memory that a case may take."""
    if device.type != "cuda":
        return sys.maxsize
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def gated_cases(options: argparse.Namespace, figures: FigureWriter) -> tuple[list[tuple[Case, DType]], bool]:
    """The calls of operators that are right on this GPU, and whether one is not.

    Raises: RedGateError if one is wrong and the options say to stop; FiguresError for a file that is none.
    """
    wanted = [(case, dtype) for dtype in DTYPES[options.dtype] for case in chosen_cases(options)]
    dtypes = [getattr(torch, dtype.value) for dtype in DTYPES[options.dtype]]
    red = red_operators(options.gate_from, options.way, dtypes) if options.gate_from else None
    if red is None:
        red = set(_run_gate(options, dtypes, figures))
    right = [(case, dtype) for case, dtype in wanted if (case.operator, dtype.value) not in red]
    for case, dtype in wanted:
        if (case, dtype) not in right:
            _problem(figures, f"RED {case.name}, {dtype.value}", f"{case.operator} is wrong here, so it is not timed")
    return right, len(right) < len(wanted)


def _run_gate(
    options: argparse.Namespace, dtypes: Sequence[torch.dtype], figures: FigureWriter
) -> Iterator[tuple[str, str]]:
    """Operator and type of every check that is red."""
    for way, check, wrong in run_gate([options.way], dtypes, "cuda", 1, figures):
        if wrong is None:
            continue
        line = f"{way}, {check.operator}, {check.name}, {check.type_name}: {wrong}"
        if options.gate == "stop":
            raise RedGateError(f"{line}; nothing is measured (--gate report measures the others)")
        print(f"RED {line}", file=sys.stderr, flush=True)
        yield check.operator, check.type_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if there is no GPU, none with known rates, or an operator is wrong on it or fails."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if not torch.cuda.is_available():
        print(f"error: {NO_GPU}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        return run(options, device)
    except (SalaError, RedGateError, FiguresError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, device: torch.device) -> int:
    """Check, measure, print."""
    if options.once:
        return run_once(options, device)
    figures = start_figures(options)
    settings = Settings(
        rates=find_rates(options.gpu, torch.cuda.get_device_name(device)),
        rounds=options.rounds,
        budget_seconds=case_seconds(options),
        way=options.way,
        with_peers=not options.no_peers,
    )
    cases, is_red = gated_cases(options, figures)
    if options.tune:
        for dtype in DTYPES[options.dtype]:
            of_type = [case for case, its_dtype in cases if its_dtype is dtype]
            print(tune(options.tune, of_type, dtype, device, GpuTimer(device), settings, figures))
        return 2 if is_red else 0
    rows, has_failed = measure_all(cases, device, GpuTimer(device), settings, figures)
    print(f"{torch.cuda.get_device_name(device)}, commit {describe_run()['commit']}, {options.way}\n")
    print(results_table(rows))
    print("\nGoals, which are stated for an H100:")
    print("\n".join(goal_lines(rows)))
    return 2 if is_red or has_failed else 0


def run_once(options: argparse.Namespace, device: torch.device) -> int:
    """Each call a single time, on fresh inputs."""
    for dtype in DTYPES[options.dtype]:
        for case in chosen_cases(options):
            inputs = make_inputs(case, getattr(torch, dtype.value), device)
            bind(options.way, case.contract, case.kernel_set, inputs, case.attributes).run()
            torch.cuda.synchronize(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
