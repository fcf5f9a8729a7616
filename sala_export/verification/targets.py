"""Opens the two models that `verify` compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.manifest import MANIFEST_FILE
from ..bundle.reader import Bundle
from ..checkpoint.folder import CONFIG_FILE
from ..checkpoint.reader import Checkpoint
from ..errors import RequestError
from ..files import exists, is_directory
from ..specs import CpuMath, Precision
from .bundle_subject import BundleSubject
from .subject import CheckpointSubject, Subject

if TYPE_CHECKING:
    from ..model_source import ModelSource
    from ..runtime.model import Model


RUNS = {
    "tensorrt": "the engine, run whole by TensorRT on its GPU",
    "onnxruntime": "the CPU form, run whole by ONNX Runtime",
    "torch": "the torch runtime, run whole",
}
"""The runtimes that can run a model under test, and what that is, for people."""


def open_original(checkpoint: Checkpoint) -> CheckpointSubject:
    """Raises: RequestError if it is quantised."""
    if checkpoint.precision is not None:
        raise RequestError(
            f"--model {checkpoint.directory} is quantised itself: give the checkpoint that it was made from"
        )
    return CheckpointSubject(checkpoint)


def open_target(target: Path, layers: int | None, cpu_math: CpuMath | None = None) -> tuple[Subject, Precision]:
    """Open the model under test, to run layer by layer. Returns it and its precision.

    Args: `layers`: take only this many layers; `cpu_math`, which graph of a bundle runs, the exact one if it is None.
    Raises: RequestError if `target` is no model, or not quantised, or a checkpoint although `cpu_math` is
        given. BundleError, CheckpointError or ConfigError.
    """
    if exists(target / CONFIG_FILE):
        if cpu_math is not None:
            raise RequestError(f"--cpu-math {cpu_math}: {target} is a checkpoint, only a bundle has it; leave it out")
        tested = Checkpoint.open(target, layers=layers)
        if tested.precision is None:
            raise RequestError(
                f"{target} is not quantised: there is nothing to verify before a bundle is built from it"
            )
        return CheckpointSubject(tested), tested.precision
    if exists(target / MANIFEST_FILE) or not is_directory(target):
        # A path that does not exist is refused as a bundle is.
        bundle = Bundle.open(target)
        return BundleSubject(bundle, layers, cpu_math or CpuMath.EXACT), bundle.manifest.precision
    raise RequestError(
        f"{target} has neither {MANIFEST_FILE} nor {CONFIG_FILE}: give a bundle or a quantised checkpoint"
    )


def require_same_model(original: Checkpoint, source: ModelSource) -> None:
    """Raises: RequestError if a model that runs whole is not of the original's configuration."""
    if original.config != source.config:
        raise RequestError("--model is another model than the one to verify: their configurations differ")


def description_of(source: ModelSource, model: Model) -> str:
    """What a loaded model is, for people."""
    quantized = source.quantized()
    computes = f"in {model.precision}" if quantized is None else f"{quantized}, activations in {model.precision}"
    return f"{RUNS[model.runtime]}, {computes}"
