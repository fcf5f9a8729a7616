"""Runs one benchmark, from a model's name to its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.manifest import MANIFEST_FILE
from ..errors import RequestError
from ..files import exists
from ..loading import TORCH, load, runs_on
from ..machine import GpuMemory, describe_machine, gpus
from ..model_source import ModelSource
from ..runtime.model import Model
from ..specs import format_tokens
from .measure import BenchmarkRequest, Measurement, StatusCallback, Tolerance, measure
from .report import Report, find_recipe, make_report

if TYPE_CHECKING:
    from ..torch_runtime.load import LoadableModel


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomSubject:
    """A model with random weights of a preset's size, made on the device."""

    preset: str
    layers: int | None = None
    """Take only this many layers from the start. None takes all of the preset."""
    seed: int = 0
    """Random seed of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSubject:
    """The model that is measured, and where."""

    model: str | RandomSubject
    """A bundle. For the torch runtime also a checkpoint directory, a hub id, or random weights."""
    weights: Path | None = None
    """A checkpoint whose weights take the place of the bundle's. The report is named after it."""
    runtime: str = "auto"
    cpu_math: str | None = None
    """Arithmetic of a bundle on a CPU. None is the exact one."""
    device: str | None = None
    precision: str | None = None
    gpu_recipe: str | None = None
    """Name or path of the recipe to compute the floor from. None takes that of the GPU, if there is one."""
    more_recipes: tuple[Path, ...] = ()
    """Recipes besides those of the package, among which that of the GPU may be."""


def _ignore(_: Report) -> None:
    pass


def run_benchmark(
    subject: BenchmarkSubject,
    request: BenchmarkRequest,
    progress: StatusCallback,
    gate: Callable[[Model, LoadableModel], object] | None = None,
    *,
    on_row: Callable[[Report], None] = _ignore,
    tolerance: Tolerance | None = None,
) -> Report:
    """Load a model, check it and measure it.

    Args:
        gate: called with the loaded model before anything is measured. What it raises ends the benchmark.
        on_row: called after each context with the report so far, whose last row is the new one.
        tolerance: goes on without the contexts that do not fit, fail, or would take too long.
    Raises: as `sala_export.load`. Without a `tolerance`, RequestError for a context that does not fit and RunError if a
        step fails.
    """
    recipe = find_recipe(subject.gpu_recipe, gpus(), subject.more_recipes)
    memory = GpuMemory()
    model, source = _load(subject)
    if isinstance(source, ModelSource):
        line, leaves_gpu_unused = runs_on(model, source)
        progress(f"warning: {line}" if leaves_gpu_unused else line)
        beyond = _beyond_the_engine(model, source, request)
        if beyond:
            progress(beyond)
    if subject.gpu_recipe is not None and not model.on_gpu:
        raise RequestError(f"--gpu-recipe {subject.gpu_recipe}: no floor is known for a CPU, leave it out")
    if gate is not None:
        gate(model, source)
    rows: list[Measurement] = []

    def report() -> Report:
        quantized = source.quantized() if isinstance(source, ModelSource) else None
        return make_report(model, source.name, source.config, request, recipe, describe_machine(), rows, quantized)

    for row in measure(model, source.config, request, memory, progress, tolerance):
        rows.append(row)
        on_row(report())
    return report()


def _beyond_the_engine(model: Model, source: ModelSource, request: BenchmarkRequest) -> str | None:
    """A warning of a context that this runtime takes and the bundle's engine does not. TensorRT itself refuses it."""
    engine = source.bundle.manifest.engine if source.bundle else None
    if engine is None or model.runtime == "tensorrt":
        return None
    served = engine.profiles["prefill"]["capacity"].max
    largest = request.contexts_on(model)[-1]
    if largest + request.new_tokens <= served:
        return None
    return (
        f"warning: a context of {format_tokens(largest)} with --new-tokens {request.new_tokens} is beyond the "
        f"{format_tokens(served)} that the engine of this bundle serves: runtime {model.runtime} takes it, tensorrt "
        "would refuse it"
    )


def _load(subject: BenchmarkSubject) -> tuple[Model, LoadableModel]:
    """The model and where it is from; nothing is downloaded for a runtime that could not run it."""
    if isinstance(subject.model, RandomSubject):
        return _load_random(subject.model, subject)
    source = _source(subject.model, subject.runtime, subject.weights)
    model = load(
        source,
        runtime=subject.runtime,
        device=subject.device,
        precision=subject.precision,
        cpu_math=subject.cpu_math,
    )
    return model, source


def _load_random(random: RandomSubject, subject: BenchmarkSubject) -> tuple[Model, LoadableModel]:
    if subject.runtime not in ("auto", TORCH):
        raise RequestError(f"random weights are for the torch runtime: leave out --runtime {subject.runtime}")
    if subject.cpu_math is not None:
        raise RequestError(f"random weights are for the torch runtime: leave out --cpu-math {subject.cpu_math}")
    # Here, not above: bundles run without torch.
    from ..torch_runtime.load import load_random

    model = load_random(
        random.preset,
        layers=random.layers,
        device=subject.device,
        precision=subject.precision,
        seed=random.seed,
    )
    return model, model.source


def _source(model: str, runtime: str, weights: Path | None) -> ModelSource:
    if runtime == TORCH:
        return ModelSource.open(model, other_weights=weights)
    if not exists(Path(model, MANIFEST_FILE)):
        raise RequestError(
            f"{model} is no bundle, which runtime {runtime} needs: choose --runtime torch for a checkpoint, or build a "
            "bundle"
        )
    return ModelSource.of_bundle(Path(model), weights)
