"""From a checkpoint to `model.onnx`, whose weights stay in the checkpoint's own bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensor_location import TensorFile
from ..model.signature import Signature, signature
from ..progress import ProgressCallback, silent
from ..specs import Precision
from .model_form import ModelForm
from .step_graph import build_step
from .weights import place_weights

GRAPH_FILE = "model.onnx"


def export_graph(
    checkpoint: Checkpoint,
    directory: Path,
    precision: Precision,
    *,
    link_weights: bool = False,
    on_progress: ProgressCallback = silent,
) -> Signature:
    """Write `model.onnx` and its weight files into the empty `directory`.

    The weight files are hard links if `link_weights` and the file system can, else files of their own, as
    `place_weights` describes them.

    Returns: names, types and shapes of the graph's inputs and outputs.
    Raises: RequestError if `precision` is not that of a quantised checkpoint; DiskFullError if copies of the weights do
    not fit the disk.
    """
    checkpoint.require_precision(precision)
    files = (where.file for where in checkpoint.tensors().values())
    placed = place_weights(files, directory, link=link_weights, on_progress=on_progress)
    on_progress("graph", 0, 1)
    step = write_graph(checkpoint, directory, precision, placed)
    on_progress("graph", 1, 1)
    return step


def write_graph(
    checkpoint: Checkpoint, directory: Path, precision: Precision, placed: Mapping[TensorFile, str]
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
