"""One benchmark from a model's name to its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bundle.manifest import MANIFEST_FILE
from ..errors import RequestError
from ..loading import TORCH, load
from ..model_source import ModelSource
from ..runtime.model import Model
from .machine import GpuMemory, describe_machine, gpus
from .measure import BenchmarkRequest, Progress, measure
from .report import Report, find_recipe, make_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured."""

    model: str
    """A bundle; for the torch runtime also a checkpoint directory or hub id."""
    runtime: str = "auto"
    device: str | None = None
    precision: str | None = None
    gpu_recipe: str | None = None
    """Name or path of the recipe that the floor is computed from; None: that of the GPU, if there is one."""
    more_recipes: tuple[Path, ...] = ()
    """To look for that of the GPU among, besides those of the package."""


def run_benchmark(
    subject: Subject,
    request: BenchmarkRequest,
    progress: Progress,
    gate: Callable[[Model, ModelSource], object] | None = None,
) -> Report:
    """Load, check, measure.

    Args: `gate`, called with the loaded model before anything is measured; what it raises comes out.
    Raises: as `sala_export.load`; RequestError for a context that does not fit; RunError if a step fails.
    """
    recipe = find_recipe(subject.gpu_recipe, gpus(), subject.more_recipes)
    source = _source(subject)
    memory = GpuMemory()
    model = load(subject.model, runtime=subject.runtime, device=subject.device, precision=subject.precision)
    if subject.gpu_recipe is not None and not model.on_gpu:
        raise RequestError(f"--gpu-recipe {subject.gpu_recipe}: no floor is known for a CPU, leave it out")
    if gate is not None:
        gate(model, source)
    rows = list(measure(model, source, request, memory, progress))
    return make_report(model, source, request, recipe, describe_machine(), rows)


def _source(subject: Subject) -> ModelSource:
    """The model; nothing is downloaded for a runtime that could not run it."""
    if subject.runtime == TORCH:
        return ModelSource.open(subject.model)
    if not Path(subject.model, MANIFEST_FILE).is_file():
        raise RequestError(
            f"{subject.model} is no bundle, which runtime {subject.runtime} needs: choose --runtime torch for a "
            "checkpoint, or build a bundle"
        )
    return ModelSource.of_bundle(Path(subject.model))
