"""One layer of a graph as a graph of its own, so that a model runs in the memory of its largest layer."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from ..errors import ExportError
from ..files import TextFile
from ..specs import stream_name

MOST_GRAPH_BYTES = (2 << 30) - 1
"""The limit of protobuf. Weights are not part of the file."""


def write_layer(graph: TextFile, layer: int, path: Path) -> None:
    """Write the part of the file `graph` that computes one layer to `path`.

    It begins with the embedding, or with the residual stream `hidden_states.{layer}`, which `step_graph.py` names, and
    gives `hidden_states.{layer + 1}`. Of the inputs of `graph` it has those that it reads, under their names.

    Raises: ExportError if the graph has no such layer.
    """
    try:
        proto = onnx.load_model_from_string(graph.content)
    except DecodeError:
        raise ExportError(f"{graph.path} is no ONNX graph: build the bundle again") from None
    model = ir.from_proto(proto)
    streams = {value.name: value for node in model.graph for value in node.outputs}
    begin, end = stream_name(layer), stream_name(layer + 1)
    if begin not in streams or end not in streams:
        raise ExportError(f"{graph.path} has no layer {layer}: no values {begin} and {end} (build the bundle again)")
    entry = [] if layer == 0 else [streams[begin]]
    model.graph = ir.convenience.extract(model.graph, [*entry, *model.graph.inputs], [streams[end]])
    for value in [value for value in model.graph.inputs if not value.uses()]:
        model.graph.inputs.remove(value)
    ir.save(model, path)
