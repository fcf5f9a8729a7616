"""Calibration files and quantised checkpoints for tests."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch

from sala_export.calibration.layer import QuantizationRecipe
from sala_export.calibration.quantize import quantize_checkpoint
from sala_export.calibration.samples import SampleRequest
from sala_export.checkpoint.reader import Checkpoint
from sala_export.specs import Precision

from .checkpoints import tiny_checkpoint

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-calibration-")
LAYERS = 2
"""Of the tiny checkpoint: one sparse, one lightning."""


def write_samples(path: Path, *, count: int = 4, length: int = 96, vocab_size: int = 512, seed: int = 1) -> Path:
    """Lines of random token ids; returns `path`."""
    random = torch.Generator().manual_seed(seed)
    lines = [
        json.dumps({"input_ids": torch.randint(0, vocab_size, (length,), generator=random).tolist()})
        for _ in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@functools.cache
def samples_file() -> Path:
    """Shared between tests, never written to."""
    return write_samples(Path(_FOLDER.name) / "samples.jsonl")


@functools.cache
def quantized_tiny(precision: Precision, algorithm: str | None = None, layers: int = LAYERS) -> Path:
    """The first layers of the tiny checkpoint, quantised once per session; shared, never written to."""
    path = Path(_FOLDER.name) / f"tiny-{precision}-{algorithm}-{layers}"
    recipe = QuantizationRecipe.from_options(precision, algorithm=algorithm)
    source = Checkpoint.open(tiny_checkpoint(layers))
    quantize_checkpoint(source, recipe, SampleRequest(file=samples_file()), path)
    return path
