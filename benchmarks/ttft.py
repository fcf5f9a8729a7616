"""Time to the first token, decode rate and peak memory from 64K to 1M tokens: table, JSON and plot.

    python -m benchmarks.ttft MODEL [--runtime torch] [--contexts 64K,128K,256K,512K,1M] [--new-tokens 128]
        [--gpu-recipe my.toml] [--json out.json] [--plot out.png]

MODEL is a bundle or, for the torch runtime, a checkpoint directory or hub id; `sala-export random-checkpoint big
--preset 9b` writes one of the published size. Beside the measured figures stand the floor of the GPU and the published
ones of other GPUs. Nothing is measured unless the runtime agrees with the reference model on a short prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from sala_export.benchmark.gate import Agreement, require_agreement
from sala_export.benchmark.measure import BenchmarkRequest
from sala_export.benchmark.report import describe, table
from sala_export.benchmark.run import Subject, run_benchmark
from sala_export.errors import SalaError
from sala_export.model_source import ModelSource
from sala_export.runtime.model import Model
from sala_export.specs import parse_tokens


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a bundle, or for the torch runtime a checkpoint directory or hub id")
    parser.add_argument("--runtime", default="auto", help="auto, onnxruntime, tensorrt or torch (default: auto)")
    parser.add_argument("--device", help="of the torch runtime (default: a GPU if there is one)")
    parser.add_argument("--precision", help="of the torch runtime (default: the model's; on the CPU fp32)")
    parser.add_argument("--contexts", default="64K,128K,256K,512K,1M", help="(default: 64K,128K,256K,512K,1M)")
    parser.add_argument("--new-tokens", type=int, default=128, help="(default: 128)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each length (default: 3)")
    parser.add_argument("--chunk-tokens", type=int, help="tokens of one prefill step (default: the engine's)")
    parser.add_argument("--gpu-recipe", help="for the floor (default: the recipe of this GPU, if there is one)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--plot", type=Path, help="also draw it: a .png, .svg or .pdf")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Raises: SalaError."""
    agreements: list[Agreement] = []

    def gate(model: Model, source: ModelSource) -> None:
        agreements.append(require_agreement(model, source))

    report = run_benchmark(
        Subject(
            model=options.model,
            runtime=options.runtime,
            device=options.device,
            precision=options.precision,
            gpu_recipe=options.gpu_recipe,
            more_recipes=tuple(sorted(Path(__file__).parent.glob("*.toml"))),
        ),
        BenchmarkRequest(
            contexts=tuple(map(parse_tokens, options.contexts.split(","))),
            new_tokens=options.new_tokens,
            repeats=options.repeats,
            chunk_tokens=options.chunk_tokens,
        ),
        lambda line: sys.stderr.write(f"{line}\n"),
        gate,
    )
    (agreement,) = agreements
    sys.stdout.write(table(report) + "\n")
    sys.stdout.write(f"agrees with the reference to {agreement.error:.1e} of the largest logit\n")
    if options.json:
        content = {**describe(report), "agreement": asdict(agreement)}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        from sala_export.benchmark.plot import draw

        draw(report, options.plot)


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parse_options(arguments))
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
