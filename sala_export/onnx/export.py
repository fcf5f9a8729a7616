"""From a checkpoint to `model.onnx`, whose weights stay in the checkpoint's own bytes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..checkpoint.reader import Checkpoint
from ..errors import ExportError
from ..model.signature import Signature, signature
from ..specs import Precision
from .naming import drop_metadata, name_nodes
from .quantized_form import quantize_projections
from .trace import IR_TYPES, checkpoint_name, stamp, trace
from .weights import place_weights

GRAPH_FILE = "model.onnx"


def export_graph(
    checkpoint: Checkpoint, directory: Path, precision: Precision, *, copy_weights: bool = False
) -> Signature:
    """Write `model.onnx` and its weight files into the empty `directory`.

    No weight is read: the graph's initializers point into the checkpoint's files, which are hard-linked into
    `directory`, or copied across file systems or if `copy_weights`. Where the checkpoint's type is not that of
    `precision`, the graph casts each weight. Quantised weights may have to be written once more beside the graph, see
    `quantized_runs.py`.

    Returns: names, types and shapes of the graph's inputs and outputs.
    Raises: ExportError if tracing fails; RequestError if `precision` is not that of a quantised checkpoint, or weights
    do not fit the disk.
    """
    checkpoint.require_precision(precision)
    step = signature(checkpoint.config, precision.dtype)
    placed = place_weights((where.file for where in checkpoint.tensors()), directory, copy=copy_weights)
    model = trace(checkpoint.config, precision, step)
    if checkpoint.quantized:
        quantize_projections(model, checkpoint, directory, placed)
    _attach_weights(model, checkpoint, placed, directory, precision)
    name_nodes(model.graph)
    drop_metadata(model)
    stamp(model)
    ir.save(model, directory / GRAPH_FILE)
    return step


def _attach_weights(
    model: ir.Model, checkpoint: Checkpoint, placed: dict[Path, str], directory: Path, precision: Precision
) -> None:
    """Point every weight at its bytes, under its checkpoint name, with a Cast where the stored type differs."""
    for value in [v for v in model.graph.initializers.values() if v.const_value is None]:
        name = checkpoint_name(value)
        location = checkpoint.locations[name]
        shape = tuple(value.shape.numpy()) if value.shape is not None else None
        if shape != location.shape:
            raise ExportError(f"{name}: the traced graph has shape {shape}, the checkpoint {location.shape}")
        tensor = ir.ExternalTensor(
            placed[location.file],
            location.offset,
            location.length,
            IR_TYPES[location.dtype],
            shape=ir.Shape(location.shape),
            name=name,
            base_dir=directory,
        )
        assert value.name is not None
        del model.graph.initializers[value.name]
        stored = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        model.graph.register_initializer(stored)
        used = stored if location.dtype is precision.dtype else _cast(model.graph, stored, precision)
        ir.convenience.replace_all_uses_with(value, used)


def _cast(graph: ir.Graph, stored: ir.Value, precision: Precision) -> ir.Value:
    target = IR_TYPES[precision.dtype]
    cast = ir.node("Cast", [stored], {"to": int(target)}, name=f"{stored.name}/Cast")
    (output,) = cast.outputs
    output.name, output.dtype, output.shape = f"{stored.name}.{precision}", target, stored.shape
    graph.insert_before(graph[0], cast)
    return output
