"""Exported graphs of quantised checkpoints, written once per session and shared between tests: never written to."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.export import export_graph
from sala_export.specs import Precision

from .checkpoints import tiny_checkpoint

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-quantized-graphs-")


@functools.cache
def quantized_graph(precision: Precision) -> Path:
    """The folder of `model.onnx` of the first two tiny layers, one of each mixer."""
    folder = Path(_FOLDER.name) / precision
    folder.mkdir()
    export_graph(Checkpoint.open(tiny_checkpoint(2, precision)), folder, precision)
    return folder
