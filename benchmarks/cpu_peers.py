"""The CPU runtime beside llama.cpp with a random dense model of as many weights, in one run: ratios by context.

    python -m venv llama && llama/bin/pip install llama-cpp-python gguf
    python -m benchmarks.cpu_peers nine.sala --peer-python llama/bin/python --gguf scratch/nine.gguf [--context 512,4K]

The bundle is int4 or bf16, of the published widths. llama.cpp gets a Llama of the same number of layers and weights, in
Q4_0 or bf16, with two key heads, which is written to `--gguf` once. The sides run in turn, each in a process of its
own, `--rounds` times. Times are medians, memory is the largest peak of a process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import duration, markdown
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import EMBEDDING, LM_HEAD, weights
from sala_export.machine import describe_machine
from sala_export.specs import Precision, format_bytes, format_tokens, parse_tokens

_TYPES = {Precision.INT4: "q4_0", Precision.BF16: "bf16"}
_SIDE = Path(__file__).with_name("llama_cpp_side.py")
# Query, key, value and output of 32 heads with two key heads, at a width of 4,096.
_ATTENTION_WEIGHTS = 2 * 4096 * 4096 + 2 * 4096 * 256
_WIDTH = 4096
_BLOCK = 256
"""The width of the MLP is a multiple of it."""


def equal_width(config: SalaConfig) -> int:
    """Width of the MLP that gives a Llama as many weights in its layers as the model has."""
    layers = sum(
        math.prod(weight.shape)
        for weight in weights(config)
        if weight.name not in (EMBEDDING, LM_HEAD) and len(weight.shape) == 2
    )
    width = (layers / config.num_hidden_layers - _ATTENTION_WEIGHTS) / (3 * _WIDTH)
    return round(width / _BLOCK) * _BLOCK


def run_json(command: Sequence[str | Path]) -> Any:
    """What a program prints as JSON."""
    return json.loads(subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE).stdout)


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """`sala-export bench`, in the form of the other side."""
    report = run_json(
        [
            *(
                Path(sys.executable).with_name("sala-export"),
                "bench",
                options.bundle,
                "--runtime",
                "onnxruntime",
                "--json",
            ),
            *("--cpu-math", options.cpu_math, "--context", options.context, "--repeats", "1"),
            *("--new-tokens", str(options.new_tokens)),
        ]
    )
    return {
        "rows": [
            {name: row[f"{name}_seconds"]["median"] for name in ("first_token", "token")} for row in report["contexts"]
        ],
        "host_bytes": max(row["host_memory_bytes"] for row in report["contexts"]),
    }


def run_peer(options: argparse.Namespace, config: SalaConfig, kind: str, contexts: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = run_json(
        [
            *(options.peer_python, _SIDE, options.gguf, "--type", kind, "--layers", str(config.num_hidden_layers)),
            *("--intermediate", str(equal_width(config)), "--contexts", ",".join(map(str, contexts))),
            *("--new-tokens", str(options.new_tokens), "--threads", str(options.threads)),
        ]
    )
    return found


def table(contexts: Sequence[int], ours: Sequence[dict[str, Any]], peer: Sequence[dict[str, Any]]) -> str:
    """Prefill and decode by context, and peak memory."""

    def median(side: Sequence[dict[str, Any]], index: int, what: str) -> float:
        return statistics.median(float(run["rows"][index][what]) for run in side)

    lines = []
    for index, context in enumerate(contexts):
        for what, title in (("first_token", "prompt"), ("token", "token")):
            mine, theirs = median(ours, index, what), median(peer, index, what)
            lines.append([format_tokens(context), title, duration(mine), duration(theirs), f"{theirs / mine:.2f}"])
    most = [max(run["host_bytes"] for run in side) for side in (ours, peer)]
    lines.append(["", "memory", *map(format_bytes, most), f"{most[1] / most[0]:.2f}"])
    return markdown(["context", "", "sala-export", "llama.cpp", "times as good"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, help="bundle of int4 or bf16 weights")
    parser.add_argument("--peer-python", type=Path, required=True, help="a Python that has llama-cpp-python and gguf")
    parser.add_argument("--gguf", type=Path, required=True, help="the model of llama.cpp, written if it is not there")
    parser.add_argument("--cpu-math", choices=["exact", "fast"], default="fast", help="our arithmetic (default: fast)")
    parser.add_argument("--context", default="512", help="lengths of prompts, for example 512,4K (default: 512)")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens behind each prompt (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of llama.cpp (default: 2)")
    options = parser.parse_args()
    manifest = Bundle.open(options.bundle).manifest
    if manifest.precision not in _TYPES or manifest.model.config.hidden_size != _WIDTH:
        parser.error(f"{options.bundle} is no int4 or bf16 bundle of the published widths")
    config, kind = manifest.model.config, _TYPES[manifest.precision]
    contexts = [parse_tokens(word) for word in options.context.split(",")]
    ours, peer = [], []
    for _ in range(options.rounds):
        peer.append(run_peer(options, config, kind, contexts))
        ours.append(run_ours(options))
    sys.stdout.write(
        f"{manifest.precision} ({options.cpu_math}) beside {kind} of {peer[0]['version']}, {config.num_hidden_layers} "
        f"layers, {describe_machine().processor}, {options.threads} threads\n\n{table(contexts, ours, peer)}\n"
    )


if __name__ == "__main__":
    main()
