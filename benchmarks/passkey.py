"""Recall of passkeys in long prompts: needles found by depth, prefill rate and peak host memory by length.

    python -m benchmarks.passkey [--lengths 8K,64K,256K,1M] [--precision bf16] [--heads 4] [--runtime torch]
                                 [--json out.json]

The model is the constructed checkpoint of tests/support/passkey.py: it has to select the right blocks, and nothing is
trained. A quantised precision is calibrated on short prompts, and its products round as an engine's do. The prompt is
streamed; each length runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime

import sala_export
from sala_export.benchmark.machine import as_json, describe_machine
from sala_export.calibration.layer import Recipe
from sala_export.calibration.quantize import quantize_checkpoint
from sala_export.calibration.samples import SampleRequest
from sala_export.checkpoint.reader import Checkpoint
from sala_export.specs import QUANTIZED_PRECISIONS, Precision, format_bytes, format_tokens, parse_tokens

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.passkey import (
    DEPTHS,
    in_pieces,
    needle_positions,
    passkey_config,
    passkey_prompt,
    write_passkey_checkpoint,
    write_passkey_samples,
)
from support.runtime_bundles import write_cpu_bundle

PIECE_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """One streamed prompt."""

    length: int
    found: tuple[bool, ...]
    """By depth, in the order of `DEPTHS`."""
    prefill_seconds: float
    question_seconds: float
    """Of one question of two tokens, mean."""
    peak_memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return self.length / self.prefill_seconds


def measure(bundle: Path, length: int, threads: int, runtime: str, device: str | None) -> Recall:
    """Stream a prompt of `length` tokens with a needle at every depth, and ask for each."""
    tokens, needles = passkey_prompt(length, needle_positions(length))
    context = length + 2 * len(needles)
    model = sala_export.load(bundle, threads=threads, runtime=runtime, device=device)
    session = model.session(max_context=context)
    start = time.monotonic()
    session.prefill(in_pieces(tokens, (PIECE_TOKENS,)))
    read = time.monotonic()
    answers = [int(session.prefill(needle.question(), context_length=context).argmax()) for needle in needles]
    asked = time.monotonic()
    return Recall(
        length=length,
        found=tuple(answer == needle.value for answer, needle in zip(answers, needles, strict=True)),
        prefill_seconds=read - start,
        question_seconds=(asked - read) / len(needles),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def quantized(checkpoint: Path, precision: Precision) -> Path:
    """The checkpoint in another precision, beside it."""
    samples = SampleRequest(file=write_passkey_samples(checkpoint.with_name("samples.jsonl")))
    output = checkpoint.with_name(f"checkpoint-{precision}")
    quantize_checkpoint(Checkpoint.open(checkpoint), Recipe.from_options(precision), samples, output)
    return output


def table(rows: Sequence[Recall]) -> str:
    depths = " ".join(f"{depth:>5.0%}" for depth in DEPTHS)
    lines = [f"{'length':>8} {depths} {'prefill':>10} {'tokens/s':>10} {'question':>10} {'peak memory':>12}"]
    for row in rows:
        found = " ".join(f"{'found' if hit else 'lost':>5}" for hit in row.found)
        lines.append(
            f"{format_tokens(row.length):>8} {found} {row.prefill_seconds:>8.1f} s {row.tokens_per_second:>10,.0f} "
            f"{row.question_seconds * 1000:>7.0f} ms {format_bytes(row.peak_memory_bytes):>12}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", default="8K,64K,256K,1M", help="tokens of the prompts (default: 8K,64K,256K,1M)")
    precisions = [Precision.BF16, *QUANTIZED_PRECISIONS]
    parser.add_argument(
        "--precision", type=Precision, choices=precisions, default=Precision.BF16, help="(default: bf16)"
    )
    parser.add_argument("--heads", type=int, default=4, help="query heads of the model (default: 4)")
    parser.add_argument("--topk", type=int, default=8, help="blocks taken; 2 leaves no selected ones (default: 8)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--runtime", default="auto", help="auto, onnxruntime, tensorrt or torch (default: auto)")
    parser.add_argument("--device", help="of the torch runtime: cuda or cpu (default: a GPU if there is one)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = passkey_config(num_attention_heads=options.heads, topk=options.topk)
        checkpoint = write_passkey_checkpoint(Path(folder, "checkpoint"), config)
        if options.precision is not Precision.BF16:
            checkpoint = quantized(checkpoint, options.precision)
        bundle = write_cpu_bundle(checkpoint, Path(folder, "passkey.sala"))
        rows = []
        for length in map(parse_tokens, options.lengths.split(",")):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                arguments = (bundle, length, options.threads, options.runtime, options.device)
                rows.append(process.apply(measure, arguments))
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        machine = {**as_json(describe_machine()), "onnxruntime": onnxruntime.__version__}
        names = ("precision", "runtime", "device", "heads", "topk", "threads")
        settings = {name: getattr(options, name) for name in names}
        report = {"machine": machine, **settings, "depths": DEPTHS, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(all(row.found) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
