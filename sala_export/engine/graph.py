"""An exported graph as the engine stage sees it: interface, operators, sizes of the weights; their data is not read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ..errors import CheckpointError, RequestError, ShapeError
from ..ops.infllmv2_attention.schema import CONTRACT as INFLLMV2_ATTENTION
from ..ops.registry import CONTRACTS
from ..specs import STREAM, DType, TensorSpec

GRAPH_FILE = "model.onnx"
OPERATOR_DOMAIN = "sala"
SYMBOLIC_DIMENSIONS = ("batch", "tokens", "capacity", "capacity_k1", "capacity_k2")

_DTYPES: dict[int, DType] = {
    onnx.TensorProto.FLOAT: DType.FLOAT32,
    onnx.TensorProto.FLOAT16: DType.FLOAT16,
    onnx.TensorProto.BFLOAT16: DType.BFLOAT16,
    onnx.TensorProto.INT32: DType.INT32,
    onnx.TensorProto.INT64: DType.INT64,
}

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

_FLOATING = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

_QUANTIZED_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorNode:
    """A node of this project's operators."""

    name: str
    op_type: str
    attributes: Mapping[str, int | float]
    """The attributes of the operator's contract."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineGraph:
    """An exported graph, or the shard of one that holds some consecutive layers, described."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorNode, ...]
    parameters: int
    """Weight elements, each counted once however many names it has."""
    weights_bytes: int
    """Of all weights, the scales of quantised ones included."""
    layer_weights_bytes: tuple[int, ...]
    """In order of layers: the embedding counts with the first, final norm and lm_head with the last. A weight that the
    embedding and lm_head share counts with both, since shards hold it each."""
    hidden_size: int
    widest_projection: int
    """Output features of the widest projection of every token, weights that the graph concatenates taken together."""
    activation_dtype: DType
    quantized_parameters: int = 0
    """Weight elements that are quantised."""
    quantized_weights_bytes: int = 0
    """Of these and their scales."""

    def sparse_sizes(self) -> SparseSizes | None:
        """Sizes of the block-sparse operator, which all its nodes share; None if the graph has none.

        Raises: ShapeError if nodes disagree, since they share one symbolic capacity.
        """
        found: dict[SparseSizes, str] = {}
        for node in self.operators:
            if node.op_type == INFLLMV2_ATTENTION.onnx_type:
                sizes = {name: int(node.attributes[name]) for name in ("kernel_size", "kernel_stride", "block_size")}
                found.setdefault(SparseSizes(**sizes), node.name)
        if len(found) > 1:
            raise ShapeError(f"{self.path}: {' and '.join(found.values())} differ in kernel_size, stride or block_size")
        return next(iter(found), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseSizes:
    """The sizes that tie the capacities of the compressed caches to that of the key cache; in tokens."""

    kernel_size: int
    kernel_stride: int
    block_size: int

    def k1_capacity(self, capacity: int) -> int:
        """Complete k1 windows among `capacity` keys, at least 1: TensorRT takes no empty tensor."""
        return max(1, (capacity - self.kernel_size) // self.kernel_stride + 1)

    def k2_capacity(self, capacity: int) -> int:
        """Complete k2 windows, which are and stride four times as long, at least 1."""
        return max(1, (capacity - 4 * self.kernel_size) // (4 * self.kernel_stride) + 1)


def read_graph(model_dir: Path, file: str = GRAPH_FILE) -> EngineGraph:
    """Describe the graph `file` in `model_dir` and check that its external weights are there in full.

    Raises: RequestError if there is no readable graph, CheckpointError naming a missing or truncated weight file,
        ShapeError for an interface that the engine stage does not know.
    """
    path = model_dir / file
    if not path.is_file():
        raise RequestError(f"{path} does not exist: export the model there first")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        raise RequestError(f"{path} is not an ONNX graph: export the model again") from None
    inputs = tuple(_spec(path, value) for value in graph.input)
    outputs = tuple(_spec(path, value) for value in graph.output)
    weights = _weights(path, graph)
    distinct = set(weights.values())
    quantized = [weight for weight in distinct if weight.is_quantized]
    hidden_size, activation_dtype = _hidden(path, graph, inputs, weights)
    return EngineGraph(
        path=path,
        inputs=inputs,
        outputs=outputs,
        operators=tuple(_operator(path, node) for node in graph.node if node.domain == OPERATOR_DOMAIN),
        parameters=sum(weight.count for weight in distinct if not weight.is_scale),
        quantized_parameters=sum(weight.count for weight in quantized if not weight.is_scale),
        weights_bytes=sum(weight.bytes for weight in distinct),
        quantized_weights_bytes=sum(weight.bytes for weight in quantized),
        layer_weights_bytes=_layer_weights_bytes(path, graph, weights),
        hidden_size=hidden_size,
        widest_projection=_widest_projection(graph, weights, (_vocabulary(path, outputs), hidden_size)),
        activation_dtype=activation_dtype,
    )


def _spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ShapeError(f"{path}: {value.name} is {name}, expected one of {', '.join(_DTYPES.values())}")
    shape: list[int | str] = []
    for dim in tensor.shape.dim:
        if not dim.dim_value and dim.dim_param not in SYMBOLIC_DIMENSIONS:
            known = ", ".join(SYMBOLIC_DIMENSIONS)
            raise ShapeError(f"{path}: {value.name} has dimension {dim.dim_param!r}, expected one of {known}")
        shape.append(dim.dim_value or dim.dim_param)
    return TensorSpec(value.name, _DTYPES[tensor.elem_type], tuple(shape))


def _operator(path: Path, node: onnx.NodeProto) -> OperatorNode:
    contracts = {contract.onnx_type: contract for contract in CONTRACTS}
    if node.op_type not in contracts:
        raise ShapeError(f"{path}: node {node.name} is sala::{node.op_type}, known are {', '.join(contracts)}")
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    missing = [attribute.name for attribute in contracts[node.op_type].attributes if attribute.name not in given]
    if missing:
        raise ShapeError(f"{path}: node {node.name} lacks the attributes {', '.join(missing)}")
    attributes = {attribute.name: given[attribute.name] for attribute in contracts[node.op_type].attributes}
    return OperatorNode(name=node.name, op_type=node.op_type, attributes=attributes)


@dataclass(frozen=True, slots=True)
class _Weight:
    """An initializer of the model's; equal ones are the same bytes of the same file, in the same type."""

    source: str
    shape: tuple[int, ...]
    bits: int
    """Of an element, as the graph computes with it: after a Cast, before a DequantizeLinear."""
    dtype: DType | None
    """None of quantised numbers."""
    is_scale: bool
    """It scales a quantised weight."""

    @property
    def is_quantized(self) -> bool:
        return self.dtype is None or self.is_scale

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.bits // 8


def _weights(path: Path, graph: onnx.GraphProto) -> dict[str, _Weight]:
    """Weights and their scales by name, also under the name of their Cast if the graph casts them."""
    casts = {node.input[0]: node for node in graph.node if node.op_type == "Cast"}
    scales = _scales(graph)
    weights = {}
    for tensor in graph.initializer:
        # Integer initializers are axes and shapes, scalars are constants of the arithmetic.
        if tensor.data_type not in (*_FLOATING, *_QUANTIZED_BITS) or not tensor.dims:
            continue
        stored = _DTYPES.get(tensor.data_type)
        bits = stored.bytes * 8 if stored else _QUANTIZED_BITS[tensor.data_type]
        where = {entry.key: entry.value for entry in tensor.external_data}
        source = f"initializer {tensor.name}"
        if where:
            source = f"{where['location']} {where.get('offset', '0')}"
            end = int(where.get("offset", "0")) + math.prod(tensor.dims) * bits // 8
            _require_bytes(path, tensor.name, where["location"], end)
        cast = casts.get(tensor.name)
        dtype = _DTYPES[onnx.helper.get_node_attr_value(cast, "to")] if cast else stored
        weight = _Weight(
            source, tuple(tensor.dims), dtype.bytes * 8 if dtype else bits, dtype, is_scale=tensor.name in scales
        )
        weights[tensor.name] = weight
        if cast:
            weights[cast.output[0]] = weight
    return weights


def _scales(graph: onnx.GraphProto) -> set[str]:
    """Names that scale quantised weights; a scale may be dequantised itself."""
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    found = set()
    for node in dequantized.values():
        scale = dequantized.get(node.input[1])
        found |= {node.input[1]} if scale is None else {scale.input[0], scale.input[1]}
    return found


def _require_bytes(path: Path, tensor: str, location: str, end: int) -> None:
    file = path.parent / location
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist, but holds {tensor}: place the weights beside {path.name}")
    if file.stat().st_size < end:
        raise CheckpointError(f"{file} has {file.stat().st_size} bytes, but {tensor} ends at {end}: it is truncated")


def _layer_weights_bytes(path: Path, graph: onnx.GraphProto, weights: Mapping[str, _Weight]) -> tuple[int, ...]:
    """Bytes of the weights by layer; of those of no layer the looked up go to the first, the others to the last."""
    layers: dict[int, set[_Weight]] = {}
    others = {}
    for name, weight in weights.items():
        match = _LAYER.search(name)
        if match:
            layers.setdefault(int(match[1]), set()).add(weight)
        else:
            others[name] = weight
    if not layers:
        raise ShapeError(f"{path}: no weight is named after a layer, as in layers.0.mlp.down_proj.weight")
    for node in graph.node:
        for name in node.input:
            if name in others and node.output[0] not in weights:
                layers[min(layers) if node.op_type == "Gather" else max(layers)].add(others[name])
    return tuple(sum(weight.bytes for weight in layers[layer]) for layer in sorted(layers))


def _hidden(
    path: Path, graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...], weights: Mapping[str, _Weight]
) -> tuple[int, DType]:
    """Size and type of the residual stream, from where it enters the graph: a shard's input, or the embedding."""
    for spec in inputs:
        if spec.name.startswith(STREAM) and isinstance(spec.shape[-1], int):
            return spec.shape[-1], spec.dtype
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in weights and len(weights[node.input[0]].shape) == 2:
            embedding = weights[node.input[0]]
            if embedding.dtype is not None:
                return embedding.shape[1], embedding.dtype
    raise ShapeError(f"{path}: no Gather from an embedding weight [vocabulary, hidden], and no input '{STREAM}LAYER'")


def _vocabulary(path: Path, outputs: tuple[TensorSpec, ...]) -> int | None:
    """Size of the vocabulary; None for a shard that ends before the logits."""
    for spec in outputs:
        if spec.name == "logits" and isinstance(spec.shape[-1], int):
            return spec.shape[-1]
        if spec.name.startswith(STREAM):
            return None
    raise ShapeError(f"{path}: expected an output 'logits' [batch, vocabulary], or '{STREAM}LAYER' of a shard")


def _widest_projection(graph: onnx.GraphProto, weights: Mapping[str, _Weight], head: tuple[int | None, int]) -> int:
    """Output features of the widest projection of every token; weights are [out, in].

    The embedding and lm_head, of shape `head`, are none: one is a look-up, the other sees the last token only.
    """
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    rows = {
        name: weight.shape[0]
        for name, weight in weights.items()
        if len(weight.shape) == 2 and not weight.is_scale and weight.shape != head and name not in looked_up
    }
    concatenated = [node.input for node in graph.node if node.op_type == "Concat"]
    packed = [sum(rows[name] for name in names) for names in concatenated if all(name in rows for name in names)]
    return max([head[1], *rows.values(), *packed])
