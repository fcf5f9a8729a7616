"""Cutting an exported graph into graphs of consecutive layers, for machines that cannot build it in one piece.

A shard lies beside the graph that it is cut from and points into the same weight files. Between shards travels the
residual stream alone, as `hidden_states.{layer}` [batch, tokens, hidden_size], where `layer` is the first of the shard
that takes it.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from ..errors import ExportError
from ..model.signature import PAST, PRESENT
from ..specs import STREAM, stream_name

_LAYER = re.compile(r"layers\.(\d+)[./]")
_CACHE = re.compile(rf"(?:{PAST}|{PRESENT})\.(\d+)\.")
_STEP_INPUTS = ("past_length", "context_length", "rope_cos_sin")
"""Inputs that any shard may take."""


def write_shard(graph: Path, first_layer: int, num_layers: int, shard: Path) -> None:
    """Cut the layers `first_layer` .. `first_layer + num_layers - 1` out of the file `graph` and write them to `shard`.

    The first shard begins with the embedding, the last ends with the logits. Nodes keep their names, weights their
    place in files beside the graph, which are not read; `shard` must lie in the same folder. Constants and the sizes of
    inputs are in each shard that uses them.

    Raises: ExportError if the graph cannot be cut there, because more than one value passes from layer to layer.
    """
    model = ir.load(graph)
    layers = _num_layers(model.graph)
    stop = first_layer + num_layers
    if not 0 <= first_layer < stop <= layers:
        raise ExportError(f"{graph}: cannot cut out layers {first_layer}..{stop - 1} of {layers}")
    leave = _boundary(model.graph, stop) if stop < layers else None
    _cut(graph, model.graph, range(first_layer, stop), leave, frozenset())
    ir.save(model, shard)


def write_layer(graph: Path, layer: int, path: Path, weights: frozenset[str]) -> None:
    """Cut one layer out of the CPU form `graph`, whose inputs `weights` are weights, and write it to `path`.

    It begins with the embedding or the residual stream, and ends in the stream, which after the last layer is
    `hidden_states.{layers}`.

    Raises: ExportError as `write_shard`.
    """
    model = ir.load(graph)
    if not 0 <= layer < _num_layers(model.graph):
        raise ExportError(f"{graph}: cannot cut out layer {layer} of {_num_layers(model.graph)}")
    _cut(graph, model.graph, range(layer, layer + 1), _boundary(model.graph, layer + 1), weights)
    ir.save(model, path)


def _num_layers(graph: ir.Graph) -> int:
    return 1 + max(layer for layer in map(_layer, graph) if layer is not None)


def _cut(path: Path, graph: ir.Graph, layers: range, leave: ir.Value | None, weights: frozenset[str]) -> None:
    """Leave of the graph what computes these layers, up to the value `leave` or, if None, the logits."""
    entry = _boundary(graph, layers.start) if layers.start > 0 else None
    rows = graph.inputs[0]
    if entry is not None:
        rows = _new_input(graph, entry, stream_name(layers.start))
        ir.convenience.replace_all_uses_with(entry, rows)
    _keep_outputs(graph, leave, layers)
    _take_sizes_from(graph, rows)
    _remove_unused(graph)
    _check(path, graph, layers, "logits" if leave is None else stream_name(layers.stop), weights)


def _layer(node: ir.Node) -> int | None:
    match = _LAYER.match(node.name or "")
    return int(match[1]) if match else None


def _is_constant(node: ir.Node) -> bool:
    """Equal constants of all layers are one node, named after the first: each shard has its own."""
    return not node.inputs


def _boundary(graph: ir.Graph, layer: int) -> ir.Value:
    """The one value that the layers before `layer` hand to the nodes after them."""
    crossing = [
        value
        for node in graph
        if _layer(node) == layer - 1 and not _is_constant(node)
        for value in node.outputs
        if any(_layer(user) != layer - 1 for user in value.consumers())
    ]
    if len(crossing) != 1:
        names = ", ".join(str(value.name) for value in crossing) or "nothing"
        raise ExportError(f"layer {layer - 1} hands {names} to the nodes after it, expected the residual stream alone")
    (stream,) = crossing
    if stream.shape is None or len(stream.shape) != 3 or not isinstance(stream.shape[2], int) or stream.dtype is None:
        raise ExportError(
            f"{stream.name}, which enters layer {layer}, is {stream.dtype} {stream.shape}, expected [B,T,H]"
        )
    return stream


def _new_input(graph: ir.Graph, stream: ir.Value, name: str) -> ir.Value:
    assert stream.shape is not None
    value = ir.Value(name=name, type=stream.type, shape=ir.Shape(["batch", "tokens", stream.shape[2]]))
    graph.inputs.append(value)
    return value


def _take_sizes_from(graph: ir.Graph, rows: ir.Value) -> None:
    """Read the number of sequences and of tokens off `rows` [batch, tokens, ...], whatever input they were read off."""
    assert rows.shape is not None
    axes = {str(extent): axis for axis, extent in enumerate(rows.shape) if isinstance(extent, ir.SymbolicDim)}
    axes = {name: axis for name, axis in axes.items() if name in ("batch", "tokens")}
    for node in graph:
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source is None or not source.is_graph_input() or source.shape is None:
            continue
        start, end = node.attributes["start"].as_int(), node.attributes["end"].as_int()
        sizes = [str(extent) for extent in source.shape[start:end]]
        if len(sizes) == 1 and sizes[0] in axes:
            node.replace_input_with(0, rows)
            node.attributes["start"] = ir.AttrInt64("start", axes[sizes[0]])
            node.attributes["end"] = ir.AttrInt64("end", axes[sizes[0]] + 1)


def _keep_outputs(graph: ir.Graph, leave: ir.Value | None, layers: range) -> None:
    """Leave the caches of these layers, and the stream, or the logits of the last shard, as the only outputs."""
    outputs = [value for value in graph.outputs if _cache_layer(value) in layers]
    if leave is None:
        outputs = [value for value in graph.outputs if _cache_layer(value) is None or value in outputs]
    else:
        assert leave.shape is not None
        leave.name = stream_name(layers.stop)
        leave.shape = ir.Shape(["batch", "tokens", leave.shape[2]])
        outputs.insert(0, leave)
    graph.outputs.clear()
    graph.outputs.extend(outputs)


def _cache_layer(value: ir.Value) -> int | None:
    match = _CACHE.match(value.name or "")
    return int(match[1]) if match else None


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        assert value.name is not None
        del graph.initializers[value.name]
    used = [value for value in graph.inputs if value.uses()]
    # The stream is in the place of the token ids.
    used.sort(key=lambda value: not (value.name or "").startswith(STREAM))
    graph.inputs.clear()
    graph.inputs.extend(used)


def _check(path: Path, graph: ir.Graph, shard: range, end: str, weights: frozenset[str]) -> None:
    """Prove that nothing but the residual stream crosses the ends of the shard.

    Whatever else the shard depends on would be among its inputs, or among its nodes under the name of another layer.
    """
    foreign = [str(node.name) for node in graph if not _is_constant(node) and _layer(node) not in (None, *shard)]
    if foreign:
        raise ExportError(f"{path}: layers {shard[0]}..{shard[-1]} need {', '.join(foreign[:3])} of another layer")
    caches = [value for value in graph.inputs if _cache_layer(value) is not None]
    if {_cache_layer(value) for value in caches} - set(shard):
        raise ExportError(f"{path}: layers {shard[0]}..{shard[-1]} read the caches of other layers")
    found = {str(value.name) for value in graph.inputs} - {str(value.name) for value in caches} - set(_STEP_INPUTS)
    found -= weights
    expected = {"input_ids" if shard[0] == 0 else stream_name(shard[0])}
    if found != expected:
        raise ExportError(
            f"{path}: layers {shard[0]}..{shard[-1]} read {', '.join(sorted(found)) or 'nothing'}, expected "
            f"{', '.join(expected)} and no more: the graph cannot be cut there"
        )
    ends = [str(value.name) for value in graph.outputs if _cache_layer(value) is None]
    if ends != [end]:
        raise ExportError(f"{path}: layers {shard[0]}..{shard[-1]} give {', '.join(ends) or 'nothing'}")
