"""The GPU kernels on the GPU present, at the published sizes: each launch, each operator, its peer, and the floor.

python -m benchmarks.kernels [--quick] [--only TEXT] [--dtype bf16|fp16|both] [--json out.json]
python -m benchmarks.kernels --tune infllmv2_select_kernel

What is measured, and how, is in docs/kernels.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_machine import describe_gpu, find_rates
from benchmarks.kernel_cases import Case, published_cases
from benchmarks.kernel_gate import RedGateError, require_right_kernels
from benchmarks.kernel_measure import Row, Settings, measure, missing_memory
from benchmarks.kernel_tables import goal_lines, results_table
from benchmarks.kernel_timing import GpuTimer, Timer
from benchmarks.kernel_tuning import tunable, tune, tuning_cases
from sala_export.benchmark.machine import gpus
from sala_export.errors import SalaError
from sala_export.specs import DType

DTYPES = {"bf16": (DType.BFLOAT16,), "fp16": (DType.FLOAT16,), "both": (DType.BFLOAT16, DType.FLOAT16)}
SM80_PATH = 86


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; exits with 2 if they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="contexts of 32K only, few rounds")
    parser.add_argument("--only", help="only calls whose name has this in it, e.g. 'one token'")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="activations (default: bf16)")
    parser.add_argument("--rounds", type=int, help="rounds of each side (default: 20, with --quick 5)")
    parser.add_argument("--gpu", help="recipe with the GPU's rates (default: found by the GPU's name)")
    parser.add_argument(
        "--sm80-path",
        action="store_true",
        help="tiles and instructions of SM86 on whatever GPU: mma.sync, as RTX cards run it",
    )
    parser.add_argument("--tune", metavar="KERNEL", choices=tunable(), help=f"try tiles of one of {tunable()}")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 5 if options.quick else 20
    if options.rounds < 3:
        parser.error(f"--rounds {options.rounds}: a median with a spread needs at least 3")
    if not chosen_cases(options):
        names = ", ".join(repr(case.name) for case in published_cases(quick=options.quick))
        parser.error(f"--only {options.only}: no call has that in its name; there are {names}")
    return options


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The calls that the options ask for."""
    wanted = (options.only or "").lower()
    return [case for case in published_cases(quick=options.quick) if wanted in case.name.lower()]


def measure_all(
    cases: Sequence[Case], dtypes: Sequence[DType], device: torch.device, timer: Timer, settings: Settings
) -> tuple[list[Row], list[dict[str, str]]]:
    """Rows of all cases that fit the memory, and those that do not, with the reason; told on stderr as they come."""
    rows: list[Row] = []
    skipped: list[dict[str, str]] = []
    for dtype in dtypes:
        for case in cases:
            free = free_bytes(device)
            if reason := missing_memory(case, dtype, free):
                skipped.append({"case": case.name, "dtype": dtype.value, "reason": reason})
                print(f"SKIPPED {case.name}, {dtype.value}: {reason}", file=sys.stderr, flush=True)
                continue
            print(f"{case.name}, {dtype.value}", file=sys.stderr, flush=True)
            rows += measure(case, dtype, device, timer, settings)
    return rows, skipped


def free_bytes(device: torch.device) -> int:
    """Device memory that a case may take."""
    if device.type != "cuda":
        return sys.maxsize
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line if there is no GPU, none with known rates, or an operator is wrong on it."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if not torch.cuda.is_available():
        print("error: no CUDA device here: the kernels can only be timed on an NVIDIA GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        return run(options, device)
    except (SalaError, RedGateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, device: torch.device) -> int:
    """Check, measure, print."""
    sm = SM80_PATH if options.sm80_path else None
    rates = find_rates(options.gpu, torch.cuda.get_device_name(device))
    settings = Settings(rates=rates, rounds=options.rounds, budget_seconds=3.0 if options.quick else 15.0, sm=sm)
    dtypes = DTYPES[options.dtype]
    for dtype in dtypes:
        require_right_kernels(getattr(torch, dtype.value), sm)
    machine = describe_gpu(device)
    if options.tune:
        print(tune(options.tune, tuning_cases(options.tune), dtypes[0], device, GpuTimer(device), settings))
        return 0
    rows, skipped = measure_all(chosen_cases(options), dtypes, device, GpuTimer(device), settings)
    print(f"{machine['gpu']}, commit {machine['commit']}{', path of SM86' if sm else ''}\n")
    print(results_table(rows))
    print("\nGoals, which are stated for an H100:")
    print("\n".join(goal_lines(rows)))
    if options.json:
        report = {
            "machine": machine,
            "gpus_after": [dict(gpu) for gpu in gpus()],
            "rates": asdict(rates),
            "tiles_of_sm": sm,
            "rounds": options.rounds,
            "rows": [{**asdict(row), "of_floor": row.of_floor, "of_roofline": row.of_roofline} for row in rows],
            "skipped": skipped,
        }
        options.json.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
