"""Recall of passkeys in long prompts: needles found by depth, prefill rate and peak memory by length.

    python -m benchmarks.passkey [--lengths 8K,64K,256K,1M] [--precision bf16] [--heads 4] [--runtime torch]
                                 [--cpu-math fast] [--json out.json] [--figures figures.jsonl]

The model is the constructed checkpoint of tests/support/passkey.py: it has to select the right blocks, and nothing is
trained. The torch runtime reads the checkpoint itself, other runtimes a bundle made of it. A quantised precision is
calibrated on short prompts, and its products round as an engine's do. The prompt is streamed; each length runs in a
process of its own, so that its peak memory is its own.

The exit code is 1 if a needle was lost. With `--figures`, a length that fails is told as a problem, the others go on,
and the exit code is 1 too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sala_export
from benchmarks.figures import FigureWriter, add_figure_options
from benchmarks.gpu_machine import require_gpu_or_name
from benchmarks.run_header import start_figures
from sala_export.errors import RequestError, RunError, SalaError
from sala_export.machine import GpuMemory, as_json, describe_machine, peak_host_bytes
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

PIECE_TOKENS = 4096
TORCH = "torch"


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
    """Of the host, resident."""
    device_memory_bytes: int | None
    """On the GPU, as its driver tells; None on the CPU."""
    predicted_device_memory_bytes: int | None
    """The runtime's own account, without the CUDA context; None if it has none."""
    precision: str
    """Of activations and caches."""

    @property
    def tokens_per_second(self) -> float:
        return self.length / self.prefill_seconds


def measure(model_path: Path, length: int, options: argparse.Namespace) -> Recall:
    """Stream a prompt of `length` tokens with a needle at every depth, and ask for each. Raises: SalaError."""
    tokens, needles = passkey_prompt(length, needle_positions(length))
    context = length + 2 * len(needles)
    memory = GpuMemory()
    model = sala_export.load(
        model_path,
        threads=options.threads,
        runtime=options.runtime,
        device=options.device,
        cpu_math=options.cpu_math,
    )
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
        peak_memory_bytes=peak_host_bytes(),
        device_memory_bytes=memory.taken_bytes() if model.on_gpu else None,
        predicted_device_memory_bytes=model.predicted_device_bytes(session.max_context, session.chunk_tokens),
        precision=model.precision,
    )


def measure_apart(model_path: Path, length: int, options: argparse.Namespace) -> Recall:
    """`measure` in a process of its own. Raises: SalaError, RunError if the process dies."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(measure, model_path, length, options).result()
        except BrokenProcessPool:
            raise RunError("the process that measured was killed, for want of memory perhaps") from None


def model_of(options: argparse.Namespace, folder: Path) -> Path:
    """Write what the options ask for: the checkpoint itself for the torch runtime, else a bundle."""
    config = passkey_config(num_attention_heads=options.heads, topk=options.topk)
    checkpoint = write_passkey_checkpoint(folder / "checkpoint", config)
    if options.runtime == TORCH:
        return checkpoint
    # Here, not above: the torch runtime needs neither ONNX nor calibration.
    from support.runtime_bundles import write_cpu_bundle

    if options.precision is not Precision.BF16:
        checkpoint = quantized(checkpoint, options.precision)
    return write_cpu_bundle(checkpoint, folder / "passkey.sala")


def quantized(checkpoint: Path, precision: Precision) -> Path:
    """The checkpoint in another precision, beside it."""
    from sala_export.calibration.layer import QuantizationRecipe
    from sala_export.calibration.quantize import quantize_checkpoint
    from sala_export.calibration.samples import SampleRequest
    from sala_export.checkpoint.reader import Checkpoint

    samples = SampleRequest(file=write_passkey_samples(checkpoint.with_name("samples.jsonl")))
    output = checkpoint.with_name(f"checkpoint-{precision}")
    quantize_checkpoint(Checkpoint.open(checkpoint), QuantizationRecipe.from_options(precision), samples, output)
    return output


def table(rows: Sequence[Recall]) -> str:
    depths = " ".join(f"{depth:>5.0%}" for depth in DEPTHS)
    heads = f"{'prefill':>10} {'tokens/s':>10} {'question':>10} {'host memory':>12} {'device memory':>13}"
    lines = [f"{'length':>8} {depths} {heads}"]
    for row in rows:
        found = " ".join(f"{'found' if hit else 'lost':>5}" for hit in row.found)
        device = "-" if row.device_memory_bytes is None else format_bytes(row.device_memory_bytes)
        lines.append(
            f"{format_tokens(row.length):>8} {found} {row.prefill_seconds:>8.1f} s {row.tokens_per_second:>10,.0f} "
            f"{row.question_seconds * 1000:>7.0f} ms {format_bytes(row.peak_memory_bytes):>12} {device:>13}"
        )
    return "\n".join(lines)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--lengths", default="8K,64K,256K,1M", help="lengths of the prompts in tokens (default: 8K,64K,256K,1M)"
    )
    precisions = [Precision.BF16, *QUANTIZED_PRECISIONS]
    parser.add_argument(
        "--precision",
        type=Precision,
        choices=precisions,
        default=Precision.BF16,
        help="precision of the model (default: bf16)",
    )
    parser.add_argument("--heads", type=int, default=4, help="query heads of the model (default: 4)")
    parser.add_argument(
        "--topk", type=int, default=8, help="blocks that a query takes. With 2, none are selected by score (default: 8)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads that compute on the CPU (default: 2)")
    parser.add_argument(
        "--runtime", default="auto", help="runtime: auto, onnxruntime, tensorrt or torch (default: auto)"
    )
    parser.add_argument("--device", help="device for the torch runtime: cuda or cpu (default: the GPU)")
    parser.add_argument("--cpu-math", choices=["exact", "fast"], help="arithmetic on a CPU (default: exact)")
    parser.add_argument("--json", type=Path, help="also write the results to this JSON file")
    add_figure_options(parser)
    return parser.parse_args(arguments)


def rows_of(options: argparse.Namespace, figures: FigureWriter, failed: list[int]) -> Iterator[Recall]:
    """A row for each length as it comes; with `--figures`, lengths that fail are added to `failed` instead.

    Raises: SalaError.
    """
    if options.runtime == TORCH:
        require_gpu_or_name(options.device)
        if options.precision is not Precision.BF16:
            raise RequestError(f"--precision {options.precision}: the torch runtime runs no quantised weights")
    lengths = [parse_tokens(length) for length in options.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model_path = model_of(options, Path(folder))
        for length in lengths:
            try:
                row = measure_apart(model_path, length, options)
            except RunError as error:
                if options.figures is None:
                    raise
                failed.append(length)
                where = f"passkey of {format_tokens(length)}"
                figures.write("problem", where=where, message=str(error))
                sys.stderr.write(f"{where}: failed: {error}\n")
                continue
            figures.write("passkey", **asdict(row), runtime=options.runtime, depths=DEPTHS, heads=options.heads)
            yield row


def run(options: argparse.Namespace, figures: FigureWriter) -> bool:
    """Whether every needle of every length was found. Raises: SalaError."""
    failed: list[int] = []
    rows = list(rows_of(options, figures, failed))
    if not rows:
        raise RunError("nothing was measured: every length failed")
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report(options, rows), indent=2) + "\n", encoding="utf-8")
    return not failed and all(all(row.found) for row in rows)


def report(options: argparse.Namespace, rows: Sequence[Recall]) -> dict[str, Any]:
    machine: dict[str, Any] = as_json(describe_machine())
    if options.runtime != TORCH:
        import onnxruntime

        machine["onnxruntime"] = onnxruntime.__version__
    names = ("precision", "runtime", "device", "heads", "topk", "threads")
    settings = {name: getattr(options, name) for name in names}
    return {"machine": machine, **settings, "depths": DEPTHS, "rows": [asdict(row) for row in rows]}


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    figures = start_figures(options)
    try:
        return 0 if run(options, figures) else 1
    except SalaError as error:
        figures.write("problem", where="benchmarks.passkey", message=str(error))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
