"""Reads the graph of an engine with `onnx`, which a machine that only runs bundles does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ..checkpoint.quantization import SCHEMES
from ..errors import CheckpointError, RequestError, ShapeError
from ..model.mixers import MIXERS
from ..model.signature import LOGITS, PAST, SYMBOLIC_DIMENSIONS, TOKEN_INPUTS
from ..ops.registry import CONTRACTS
from ..specs import OPERATOR_DOMAIN, DType, TensorSpec
from .graph import EngineGraph, OperatorNode

_DTYPES: dict[int, DType] = {
    onnx.TensorProto.FLOAT: DType.FLOAT32,
    onnx.TensorProto.FLOAT16: DType.FLOAT16,
    onnx.TensorProto.BFLOAT16: DType.BFLOAT16,
    onnx.TensorProto.INT32: DType.INT32,
    onnx.TensorProto.INT64: DType.INT64,
    onnx.TensorProto.FLOAT8E4M3FN: DType.FLOAT8_E4M3FN,
    onnx.TensorProto.FLOAT4E2M1: DType.FLOAT4_E2M1FN,
    onnx.TensorProto.INT8: DType.INT8,
}
_MIXER_TYPES = {kind.contract.onnx_type for kind in MIXERS.values()}
_CODE_TYPES = {scheme.input_type for scheme in SCHEMES.values()}
_CONSTANT_BITS = {onnx.TensorProto.INT4: 4, **{type_: dtype.bits for type_, dtype in _DTYPES.items()}}


def read_graph(path: Path) -> EngineGraph:
    """Describe a graph and check that the files of its constants are there in full.

    Raises: RequestError if there is no readable graph, CheckpointError naming a missing or truncated file,
        ShapeError for an interface that the engine stage does not know.
    """
    if not path.is_file():
        raise RequestError(f"{path} does not exist: export the model there first")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        raise RequestError(f"{path} is not an ONNX graph: export the model again") from None
    specs = [_spec(path, value) for value in graph.input]
    outputs = tuple(_spec(path, value) for value in graph.output)
    weights = tuple(spec for spec in specs if not _is_of_step(spec.name))
    _check_weights(path, weights)
    constants = _constants(path, graph)
    codes = [constant for constant in constants if constant.is_weight]
    inside = sum(constant.count for constant in codes)
    nodes = [_operator(path, node) for node in graph.node if node.domain == OPERATOR_DOMAIN]
    embedding = _embedding(path, graph, weights)
    head = (_vocabulary(path, outputs), embedding.shape[1])
    matrices = [_rows_of(spec) for spec in weights if spec.shape != head and spec != embedding]
    return EngineGraph(
        path=path,
        inputs=tuple(spec for spec in specs if _is_of_step(spec.name)),
        weights=weights,
        outputs=outputs,
        operators=tuple(node for node in nodes if node.op_type in _MIXER_TYPES),
        product_operators=tuple(node for node in nodes if node.op_type not in _MIXER_TYPES),
        parameters=inside + sum(_count(spec) for spec in weights if not _is_scale(spec, embedding.dtype)),
        quantized_parameters=inside + sum(_count(spec) for spec in weights if spec.dtype in _CODE_TYPES),
        constant_bytes=sum(constant.bytes for constant in constants),
        hidden_size=int(embedding.shape[1]),
        widest_projection=max(int(embedding.shape[1]), *matrices, *(constant.shape[1] for constant in codes)),
        activation_dtype=embedding.dtype,
    )


def _is_of_step(name: str) -> bool:
    return name in TOKEN_INPUTS or name.startswith(PAST)


def _check_weights(path: Path, weights: Sequence[TensorSpec]) -> None:
    for spec in weights:
        if not all(isinstance(extent, int) for extent in spec.shape):
            raise ShapeError(f"{path}: input {spec.name} has shape {list(spec.shape)}, but a weight's is fixed")


def _is_scale(spec: TensorSpec, activation: DType) -> bool:
    """Whether a weight input scales products: fp32 in a graph that computes in 16 bits, or words of block scales."""
    return spec.dtype is DType.INT32 or (spec.dtype is DType.FLOAT32 and activation is not DType.FLOAT32)


def _count(spec: TensorSpec) -> int:
    return math.prod(spec.bound({}))


def _rows_of(spec: TensorSpec) -> int:
    """Output features of a projection, whose weight is [out, in]; 0 for what is none."""
    return int(spec.shape[0]) if len(spec.shape) == 2 else 0


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Constant:
    """A matrix inside the graph: quantised weights, or the scales of their blocks."""

    shape: tuple[int, ...]
    bits: int
    is_weight: bool

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.bits // 8


def _constants(path: Path, graph: onnx.GraphProto) -> list[_Constant]:
    """Initializers that a DequantizeLinear takes, single numbers apart."""
    codes, scales = set(), set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            codes.add(node.input[0])
            scales.add(node.input[1])
    # Scales may be dequantised themselves.
    scales |= {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] in scales}
    found = []
    for tensor in graph.initializer:
        if tensor.name not in codes | scales or len(tensor.dims) < 2:
            continue
        constant = _Constant(
            shape=tuple(tensor.dims),
            bits=_CONSTANT_BITS[tensor.data_type],
            is_weight=tensor.name not in scales,
        )
        _require_data(path, tensor, constant.bytes)
        found.append(constant)
    return found


def _require_data(path: Path, tensor: onnx.TensorProto, size: int) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    if not where:
        return
    file, end = path.parent / where["location"], int(where.get("offset", "0")) + size
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist, but holds {tensor.name}: place the weights beside {path.name}")
    if file.stat().st_size < end:
        raise CheckpointError(
            f"{file} has {file.stat().st_size} bytes, but {tensor.name} ends at {end}: it is truncated"
        )


def _embedding(path: Path, graph: onnx.GraphProto, weights: Sequence[TensorSpec]) -> TensorSpec:
    """The weight [vocabulary, hidden] that token ids look up; the residual stream has its width and type."""
    matrices = {spec.name: spec for spec in weights if len(spec.shape) == 2}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in matrices:
            return matrices[node.input[0]]
    raise ShapeError(f"{path}: no Gather from an embedding weight [vocabulary, hidden]")


def _vocabulary(path: Path, outputs: Sequence[TensorSpec]) -> int:
    for spec in outputs:
        if spec.name == LOGITS and isinstance(spec.shape[-1], int):
            return spec.shape[-1]
    raise ShapeError(f"{path}: expected an output '{LOGITS}' [rows, vocabulary]")
