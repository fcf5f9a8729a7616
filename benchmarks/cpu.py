"""The CPU runtime beside what else the machine can do: speed of the operators as ratios, and memory of a long prompt.

python -m benchmarks.cpu [--memory-tokens 1M] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch

from benchmarks.cpu_memory import GOAL, PeakMemory, measure_memory
from benchmarks.cpu_operators import compare_caches, compare_lightning, compare_sparse, table
from sala_export.installation import onnxruntime_operators
from sala_export.specs import format_bytes, format_tokens, parse_tokens


def memory_line(memory: PeakMemory) -> str:
    """One line for people."""
    return (
        f"streamed prefill of {format_tokens(memory.tokens)} tokens in {memory.seconds:.0f} s: peak "
        f"{format_bytes(memory.peak_bytes)}, expected {format_bytes(memory.expected_bytes)} (cache "
        f"{format_bytes(memory.cache_bytes)}), difference {memory.difference:+.1%}, goal {GOAL:.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=Path, help="libsala_ort.so to measure (default: the installed one)")
    parser.add_argument("--threads", type=int, default=2, help="threads that each side computes with (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="measured runs of each side (default: 15)")
    parser.add_argument("--context", default="32K", help="context of InfLLM-v2 in tokens (default: 32K)")
    parser.add_argument("--memory-tokens", default="1M", help="tokens of the memory measurement (default: 1M)")
    parser.add_argument("--json", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    library = options.library or onnxruntime_operators()
    common = {"rounds": options.rounds, "threads": options.threads, "library": library}
    rows = [
        compare_lightning(2048, goal=1.6, **common),
        compare_lightning(1, goal=None, **common),
        compare_sparse(512, parse_tokens(options.context), goal=0.4, **common),
        *(
            compare_caches(tokens, parse_tokens(options.context), short, **common)
            for tokens in (1, 512)
            for short in ("bfloat16", "float16")
        ),
    ]
    sys.stdout.write(table(rows) + "\n")
    memory = measure_memory(parse_tokens(options.memory_tokens), options.threads)
    sys.stdout.write(memory_line(memory) + "\n")
    if options.json:
        machine = {
            "processor": platform.processor(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        }
        report = {"machine": machine, "threads": options.threads, "operators": [asdict(row) for row in rows]}
        report["memory"] = {**asdict(memory), "difference": memory.difference}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
