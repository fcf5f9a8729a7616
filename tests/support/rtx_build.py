"""Builds one operator alone, or a small graph of them, with TensorRT for RTX."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from sala_export.installation import plugin_library, soname_shim
from sala_export.ops.common.contract import ACTIVATION, Contract, Tensor
from sala_export.ops.common.expr import evaluate
from sala_export.ops.registry import CONTRACTS

_ONNX_TYPES = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16, "int32": TensorProto.INT32}


@dataclass(frozen=True, kw_only=True)
class SingleOperator:
    """A network of one node; every dimension of the contract is dynamic."""

    operator: str
    attributes: Mapping[str, int | float]
    profiles: Sequence[Sequence[Mapping[str, int]]]
    """Smallest, usual and largest dimensions of each profile."""
    capability: str
    """As TensorRT names it, e.g. `SM120`."""

    @property
    def contract(self) -> Contract:
        return next(contract for contract in CONTRACTS if contract.name == self.operator)

    def shape(self, tensor: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
        integers = {name: value for name, value in self.attributes.items() if isinstance(value, int)}
        return tuple(evaluate(extent, {**integers, **dims}) for extent in tensor.shape)


@dataclass
class BuildOutcome:
    plan: bytes | None = None
    outputs: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)
    """Name, shape with -1 for dynamic extents, and type, as the parser inferred them from the plugin."""
    log: list[str] = field(default_factory=list)


def build_single_operator(request: SingleOperator, folder: Path) -> BuildOutcome:
    """Parse and build the operator, as `build_graph` does."""
    profiles = [
        {tensor.name: [request.shape(tensor, dims) for dims in three] for tensor in request.contract.inputs}
        for three in request.profiles
    ]
    return build_graph(_model(request).SerializeToString(), profiles, request.capability, folder)


def build_graph(
    model: bytes, profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]], capability: str, folder: Path
) -> BuildOutcome:
    """Parse and build. To be called in a process of its own: what TensorRT dislikes may end the process.

    Args: each profile has the smallest, usual and largest shape of every input that has free dimensions.
    """
    import tensorrt_rtx as trt

    outcome = BuildOutcome()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: object, message: str) -> None:
            outcome.log.append(message)

    ctypes.CDLL(str(soname_shim()))
    logger = Logger()
    trt.get_plugin_registry().load_library(str(plugin_library()))
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    path = folder / "graph.onnx"
    path.write_bytes(model)
    if not parser.parse_from_file(str(path)):
        return outcome
    tensors = [network.get_output(i) for i in range(network.num_outputs)]
    outcome.outputs = [(tensor.name, tuple(tensor.shape), tensor.dtype.name) for tensor in tensors]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[capability], 0)
    config.plugins_to_serialize = [str(plugin_library())]
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():
            profile.set_shape(name, *three)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    outcome.plan = None if plan is None else bytes(plan)
    return outcome


def _model(request: SingleOperator) -> onnx.ModelProto:
    contract = request.contract
    integers = {name: value for name, value in request.attributes.items() if isinstance(value, int)}

    def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
        dtype = _ONNX_TYPES["bfloat16" if tensor.dtype == ACTIVATION else tensor.dtype]
        extents = [text if text in contract.dims else evaluate(text, integers) for text in tensor.shape]
        return helper.make_tensor_value_info(tensor.name, dtype, extents)

    node = operator_node(
        contract, [tensor.name for tensor in contract.inputs], [t.name for t in contract.outputs], request.attributes
    )
    return model_of([node], [value_info(t) for t in contract.inputs], [value_info(t) for t in contract.outputs])


def operator_node(
    contract: Contract, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, int | float]
) -> onnx.NodeProto:
    """A node that TensorRT's parser finds the plugin of."""
    plugin = {"plugin_namespace": "sala", "plugin_version": "1"}
    return helper.make_node(contract.onnx_type, inputs, outputs, domain="sala", **plugin, **attributes)


def model_of(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "operators", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("sala", 1)])
