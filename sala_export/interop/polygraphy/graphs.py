"""Makes a graph run alone: the weights of a bundle inside, and no bfloat16 at its border, which numpy has not."""

from __future__ import annotations

from pathlib import Path

import torch
from onnx import ModelProto, TensorProto, helper

from ...bundle.manifest import MANIFEST_FILE, WeightInput
from ...bundle.reader import Bundle
from ...files import absolute, exists
from ...onnx.graph_builder import IR_TYPES
from ...specs import OPERATOR_DOMAIN
from ...verification.bundle_weights import BundleWeights

_BORDER = ".bfloat16"
"""Ends the name of a value that is cast at the border of a graph."""


def bundle_of(graph: Path) -> Path | None:
    """The bundle in which the file of a graph lies. None if it lies in none."""
    folder = absolute(graph).parent.parent
    return folder if exists(folder / MANIFEST_FILE) else None


def weights_outside(model: ModelProto) -> list[str]:
    """Names of the weights that products of `model` take and that it does not hold."""
    inside = {tensor.name for tensor in model.graph.initializer}
    inside |= {name for node in model.graph.node for name in node.output}
    products = (node for node in model.graph.node if (node.domain, node.op_type) == (OPERATOR_DOMAIN, "Linear"))
    return [name for node in products for name in node.input if name and name not in inside]


def bind_weights(model: ModelProto, bundle: Bundle) -> bool:
    """Put every weight of the bundle that `model` takes as an input into it as an initializer.

    A weight that is stored as the graph takes it stays in the bundle's file: its location is relative to the bundle.

    Returns: whether there was one.
    Raises: UnsupportedError if the bundle has no weights, BundleError if they are damaged.
    """
    weights = BundleWeights(bundle, bundle.manifest.graph.cpu.weights)
    bundle.verify_hashes()
    graph = model.graph
    inside = {tensor.name for tensor in graph.initializer}
    used = ({name for node in graph.node for name in node.input} & weights.inputs.keys()) - inside
    others = [value for value in graph.input if value.name not in used]
    del graph.input[:]
    graph.input.extend(others)
    graph.initializer.extend(_initializer(name, weights, bundle) for name in sorted(used))
    return bool(used)


def _initializer(name: str, weights: BundleWeights, bundle: Bundle) -> TensorProto:
    spec = weights.inputs[name].spec
    tensor = TensorProto(name=name, dims=[int(extent) for extent in spec.shape], data_type=int(IR_TYPES[spec.dtype]))
    stored = _stored_alike(weights.inputs[name], bundle)
    if stored is None:
        tensor.raw_data = weights.tensor(name).contiguous().view(torch.uint8).numpy().tobytes()
        return tensor
    entry = bundle.manifest.weights.tensors[stored]
    tensor.data_location = TensorProto.EXTERNAL
    for key, where in (("location", entry.file), ("offset", entry.offset), ("length", entry.bytes)):
        tensor.external_data.add(key=key, value=str(where))
    return tensor


def _stored_alike(weight: WeightInput, bundle: Bundle) -> str | None:
    """The tensor whose bytes are the whole weight. None if numbers are converted or joined."""
    entry = bundle.manifest.weights.tensors[weight.parts[0].tensor]
    is_whole = len(weight.parts) == 1 and weight.parts[0].rows is None
    alike = is_whole and entry.dtype == weight.spec.dtype and entry.bytes == weight.spec.size_bytes({})
    return weight.parts[0].tensor if alike else None


def widen_border(model: ModelProto) -> None:
    """Give every bfloat16 input and output of `model` the type float32, with a Cast behind or before it."""
    graph = model.graph
    inputs, outputs = (
        {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}
        for values in (graph.input, graph.output)
    )
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}{_BORDER}" if name in inputs | outputs else name for name in names]
    for value in (*graph.input, *graph.output):
        if value.name in inputs | outputs:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    entering = [
        helper.make_node("Cast", [name], [f"{name}{_BORDER}"], to=TensorProto.BFLOAT16) for name in sorted(inputs)
    ]
    leaving = [helper.make_node("Cast", [f"{name}{_BORDER}"], [name], to=TensorProto.FLOAT) for name in sorted(outputs)]
    nodes = [*entering, *graph.node, *leaving]
    del graph.node[:]
    graph.node.extend(nodes)
