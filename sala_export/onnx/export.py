"""From a checkpoint to `model.onnx`, whose weights stay in the checkpoint's own bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from ..checkpoint.reader import Checkpoint
from ..files import OpenedFile
from ..model.signature import Signature, signature
from ..specs import Precision
from .model_form import ModelForm
from .step_graph import build_step
from .weights import place_weights

GRAPH_FILE = "model.onnx"


def export_graph(
    checkpoint: Checkpoint, directory: Path, precision: Precision, *, copy_weights: bool = False
) -> Signature:
    """Write `model.onnx` and its weight files into the empty `directory`.

    The checkpoint's files are hard-linked into `directory`, or copied across file systems or if `copy_weights`.

    Returns: names, types and shapes of the graph's inputs and outputs.
    Raises: RequestError if `precision` is not that of a quantised checkpoint; DiskFullError if copies of the weights do
    not fit the disk.
    """
    checkpoint.require_precision(precision)
    placed = place_weights((where.file for where in checkpoint.tensors().values()), directory, copy=copy_weights)
    return write_graph(checkpoint, directory, precision, placed)


def write_graph(
    checkpoint: Checkpoint, directory: Path, precision: Precision, placed: Mapping[OpenedFile, str]
) -> Signature:
    """Write `model.onnx` alone into `directory`.

    No weight is read: initializers point into the checkpoint's files, which are to lie in `directory` under the names
    of `placed`. Where the checkpoint's type is not that of `precision`, the graph casts each weight.

    Returns, raises: as `export_graph`.
    """
    checkpoint.require_precision(precision)
    form = ModelForm(checkpoint, precision, placed, directory)
    ir.save(build_step(checkpoint.config, form), directory / GRAPH_FILE)
    return signature(checkpoint.config, precision.dtype)
