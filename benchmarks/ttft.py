"""Time to the first token, decode rate and peak memory from 64K to 1M tokens: table, JSON and plot.

    python -m benchmarks.ttft MODEL [--runtime torch] [--contexts 64K,128K,256K,512K,1M] [--new-tokens 128]
        [--gpu-recipe my.toml] [--json out.json] [--plot out.png]
    python -m benchmarks.ttft --preset 9b [--layers 2] [--seed 0]
        [--figures figures.jsonl] [--budget-seconds 300]

MODEL is a bundle or, for the torch runtime, a checkpoint directory or hub id. `--preset 9b` needs no checkpoint: it
draws random weights of the published size on the device. Beside the measured figures stand the floor of the GPU and the
published ones of other GPUs. Nothing is measured unless the runtime agrees with the reference model on a short prompt.
With `--gate report` it is measured all the same, the disagreement is told as a problem, and the exit code is 1.

Without `--figures` and `--budget-seconds` all contexts must fit, or none is measured. With either of them, those that
fit and end in time are measured; every other one is told as a problem, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.figures import FigureWriter, add_figure_options
from benchmarks.gpu_machine import require_gpu_or_name
from benchmarks.run_header import start_figures
from sala_export.benchmark.gate import Agreement, compare, require_agreement
from sala_export.benchmark.measure import BenchmarkRequest, Tolerance
from sala_export.benchmark.report import Report, describe, describe_context, table
from sala_export.benchmark.run import BenchmarkSubject, RandomSubject, run_benchmark
from sala_export.errors import RequestError, RunError, SalaError
from sala_export.plotting import plot_file
from sala_export.runtime.model import Model
from sala_export.specs import format_tokens, parse_tokens
from sala_export.torch_runtime.load import LoadableModel


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="a bundle, or for the torch runtime a checkpoint directory or hub id")
    parser.add_argument(
        "--preset",
        help="measure random weights of this size, 9b or tiny, instead of MODEL. They are made on the device",
    )
    parser.add_argument("--layers", type=int, help="use only the first N layers of the preset (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the preset's weights (default: 0)")
    parser.add_argument(
        "--runtime", default="auto", help="runtime: auto, onnxruntime, tensorrt or torch (default: auto)"
    )
    parser.add_argument("--device", help="device for the torch runtime (default: the GPU)")
    parser.add_argument("--precision", help="precision for the torch runtime (default: the model's, fp32 on the CPU)")
    parser.add_argument(
        "--contexts",
        default="64K,128K,256K,512K,1M",
        help="lengths of the prompts in tokens (default: 64K,128K,256K,512K,1M)",
    )
    parser.add_argument(
        "--new-tokens", type=int, default=128, help="tokens to generate after each prompt (default: 128)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of runs at each length (default: 3)")
    parser.add_argument("--chunk-tokens", type=int, help="tokens per prefill step (default: the engine's)")
    parser.add_argument("--gpu-recipe", help="GPU recipe to compute the floor from (default: the recipe of this GPU)")
    parser.add_argument("--budget-seconds", type=float, help="skip contexts that would not end within this time")
    parser.add_argument(
        "--gate",
        choices=("stop", "report"),
        default="stop",
        help="if the runtime disagrees with the reference, stop, or report it and measure (default: stop)",
    )
    parser.add_argument("--json", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--plot", type=Path, help="also write a plot (.png, .svg or .pdf)")
    add_figure_options(parser)
    return parser.parse_args(arguments)


def subject_of(options: argparse.Namespace) -> BenchmarkSubject:
    """What the options say to measure. Raises: RequestError, UnsupportedError."""
    if (options.model is None) == (options.preset is None):
        raise RequestError("give either MODEL or --preset, and not both")
    if options.preset is None and options.layers is not None:
        raise RequestError(f"--layers {options.layers} is for --preset: a model on disk has the layers that it has")
    if options.preset is not None or options.runtime == "torch":
        require_gpu_or_name(options.device)
    random = RandomSubject(preset=options.preset or "", layers=options.layers, seed=options.seed)
    return BenchmarkSubject(
        model=options.model or random,
        runtime=options.runtime,
        device=options.device,
        precision=options.precision,
        gpu_recipe=options.gpu_recipe,
        more_recipes=tuple(sorted(Path(__file__).parent.glob("*.toml"))),
    )


@dataclass(frozen=True, slots=True)
class Recorder:
    """Writes figures as they come and remembers what only the end needs."""

    figures: FigureWriter
    only_reports: bool
    """Whether a model that disagrees with the reference is measured all the same."""
    agreements: list[Agreement] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)

    def gate(self, model: Model, source: LoadableModel) -> None:
        found = compare(model, source) if self.only_reports else require_agreement(model, source)
        self.agreements.append(found)
        if found.problem:
            self.figures.write("problem", where="benchmarks.ttft", message=found.problem)
            sys.stderr.write(f"error: {found.problem}\n")

    def row(self, report: Report) -> None:
        self.figures.write(
            "first_token",
            **describe_context(report, report.rows[-1]),
            model=report.model,
            runtime=report.runtime,
            precision=report.precision,
            layers=report.config.num_hidden_layers,
            chunk_tokens=report.chunk_tokens,
            new_tokens=report.request.new_tokens,
            agreement=self._error,
            agrees=self.agreements[-1].problem is None,
        )

    @property
    def _error(self) -> float | None:
        """None for one that is no number, which JSON does not have."""
        error = self.agreements[-1].error
        return error if math.isfinite(error) else None

    @property
    def has_problem(self) -> bool:
        return bool(self.left_out) or any(agreement.problem for agreement in self.agreements)

    def problem(self, context: int, reason: str) -> None:
        self.left_out.append(context)
        self.figures.write("problem", where=f"first token after {format_tokens(context)}", message=reason)
        sys.stderr.write(f"{format_tokens(context)}: left out: {reason}\n")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Raises: SalaError."""
    with plot_file(options.plot) as save_plot:
        report = measure(options, recorder)
        if save_plot is not None:
            from sala_export.benchmark.plot import draw

            save_plot(draw(report))


def measure(options: argparse.Namespace, recorder: Recorder) -> Report:
    """Measure, print and write the report. Raises: SalaError."""
    budget = math.inf if options.budget_seconds is None else options.budget_seconds
    tolerance = Tolerance(left_out=recorder.problem, deadline=time.monotonic() + budget)
    goes_on = options.figures is not None or options.budget_seconds is not None
    report = run_benchmark(
        subject_of(options),
        BenchmarkRequest(
            contexts=tuple(map(parse_tokens, options.contexts.split(","))),
            new_tokens=options.new_tokens,
            repeats=options.repeats,
            chunk_tokens=options.chunk_tokens,
        ),
        lambda line: sys.stderr.write(f"{line}\n"),
        recorder.gate,
        on_row=recorder.row,
        tolerance=tolerance if goes_on else None,
    )
    if not report.rows:
        raise RunError("nothing was measured: every context was left out")
    (agreement,) = recorder.agreements
    sys.stdout.write(table(report) + "\n")
    agrees = "DISAGREES with the reference by" if agreement.problem else "agrees with the reference to"
    sys.stdout.write(f"{agrees} {agreement.error:.1e} of the largest logit\n")
    if options.json:
        content = {**describe(report), "agreement": asdict(agreement)}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return report


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    recorder = Recorder(start_figures(options), only_reports=options.gate == "report")
    try:
        run(options, recorder)
    except SalaError as error:
        recorder.figures.write("problem", where="benchmarks.ttft", message=str(error))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 1 if recorder.has_problem else 0


if __name__ == "__main__":
    sys.exit(main())
