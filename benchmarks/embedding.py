"""The C++ program beside the Python one on one bundle: start-up, peak memory, prefill and decode rates.

    python -m benchmarks.embedding BUNDLE SALA_RUN [--tokens 2000] [--new-tokens 64] [--repeats 5] [--threads 2]

Every run is a process of its own, whose time, processor time and peak resident memory the parent sees. Rates come from
differences between runs of other lengths, so that neither start-up nor loading counts. Times are the shortest of
`--repeats` runs: what else the machine does only makes them longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sala_export.installation import onnxruntime_library, onnxruntime_operators

PYTHON = """
import sys, numpy, sala_export
bundle, tokens, new_tokens, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
session = sala_export.load(bundle, threads=threads).session()
session.prefill(numpy.loadtxt(tokens, dtype=numpy.int32, ndmin=1))
print(*session.generate_tokens(max_new_tokens=new_tokens))
"""


def command(language: str, options: argparse.Namespace, tokens: Path, new_tokens: int) -> list[str]:
    """A program that reads `tokens`, generates and ends."""
    if language == "Python":
        return [sys.executable, "-c", PYTHON, options.bundle, str(tokens), str(new_tokens), str(options.threads)]
    libraries = ["--onnxruntime", str(onnxruntime_library()), "--operators", str(onnxruntime_operators())]
    sizes = ["--max-new-tokens", str(new_tokens), "--threads", str(options.threads)]
    return [options.sala_run, options.bundle, "--tokens", str(tokens), *sizes, *libraries]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a process took."""

    seconds: float
    processor_s: float
    peak_mib: float
    tokens: int
    """Printed; a stop token may end the text before it has the length that was asked for."""


def measure(program: list[str]) -> Run:
    """Run a program to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    tokens = len(process.stdout.read().split())
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"error: this failed: {' '.join(program)}")
    return Run(
        seconds=time.perf_counter() - began,
        processor_s=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
        tokens=tokens,
    )


def summary(runs: dict[str, list[Run]], prompt_tokens: int) -> dict[str, float]:
    """Start-up, memory and rates from the runs `start`, `prefill` and `decode`."""
    wall = {name: min(run.seconds for run in each) for name, each in runs.items()}
    busy = {name: min(run.processor_s for run in each) for name, each in runs.items()}
    new_tokens = runs["decode"][0].tokens - runs["prefill"][0].tokens
    return {
        "new_tokens": new_tokens,
        "start_s": round(wall["start"], 3),
        "start_processor_s": round(busy["start"], 3),
        "start_mib": round(min(run.peak_mib for run in runs["start"])),
        "peak_mib": round(max(run.peak_mib for run in runs["decode"])),
        "prefill_tokens_per_s": round((prompt_tokens - 1) / (wall["prefill"] - wall["start"])),
        "prefill_tokens_per_processor_s": round((prompt_tokens - 1) / (busy["prefill"] - busy["start"])),
        "decode_tokens_per_s": round(new_tokens / (wall["decode"] - wall["prefill"])),
        "decode_tokens_per_processor_s": round(new_tokens / (busy["decode"] - busy["prefill"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("sala_run")
    for name, default in (("tokens", 2000), ("new-tokens", 64), ("repeats", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for count in (1, options.tokens):
            files[count] = Path(folder) / f"{count}.txt"
            np.savetxt(files[count], np.random.default_rng(0).integers(3, 512, count), fmt="%d")
        # One token in, one out; the prompt in, one out; the prompt in, many out.
        runs = {"start": (1, 1), "prefill": (options.tokens, 1), "decode": (options.tokens, 1 + options.new_tokens)}
        # In turns, so that whatever else the machine does meets both.
        seen: dict[str, dict[str, list[Run]]] = {language: {run: [] for run in runs} for language in ("C++", "Python")}
        for _ in range(options.repeats):
            for language, each in seen.items():
                for run, (prompt, new_tokens) in runs.items():
                    each[run].append(measure(command(language, options, files[prompt], new_tokens)))
    result: dict[str, object] = {"bundle": Path(options.bundle).name, "load_1min": round(os.getloadavg()[0], 1)}
    result |= {language: summary(each, options.tokens) for language, each in seen.items()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
