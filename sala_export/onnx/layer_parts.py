"""RMSNorm and the gated unit of the MLP as nodes of standard ONNX, for the forms that have nothing better."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from ..model.stream_unit import stream_unit
from ..specs import DType
from .graph_builder import IR_TYPES, GraphBuilder, shape_of
from .products import Names, layer_module
from .step_graph import Norm


class _Parts(Protocol):
    def norm(self, x: ir.Value, norm: Norm) -> ir.Value: ...
    def product(self, x: ir.Value, names: Names) -> ir.Value: ...
    def gated_product(self, x: ir.Value, names: Names) -> ir.Value: ...
    def residual_product(self, stream: ir.Value, x: ir.Value, name: str, scale: float) -> ir.Value: ...


class SeparateParts:
    """Layers of a `step_graph.Form` that states norms, products and the gated unit one by one."""

    def normed_product(self: _Parts, stream: ir.Value, norm: Norm, names: Names) -> ir.Value:
        return self.product(self.norm(stream, norm), names)

    def mlp(self: _Parts, stream: ir.Value, norm: Norm, names: Names, down: str, scale: float) -> ir.Value:
        return self.residual_product(stream, self.gated_product(self.norm(stream, norm), names), down, scale)


def norm_module(name: str) -> str:
    """Where the nodes of an RMSNorm are, by the name of its weight."""
    return name.removeprefix("model.").removesuffix(".weight")


def rms_norm(graph: GraphBuilder, x: ir.Value, weight: ir.Value, norm: Norm, dtype: DType) -> ir.Value:
    """RMSNorm of `x` [..., H] of `dtype`: the mean in fp32, the cast to `dtype` before the weight.

    Args: `weight` of `dtype`, the extents before its last are 1 if there are any.
    """
    with graph.module(norm_module(norm.weight)):
        wide = graph.cast(x, DType.FLOAT32)
        squares = graph.node("Pow", [wide, graph.number(2.0, DType.FLOAT32)])
        shape = (*shape_of(x)[:-1], 1)
        mean = graph.node("ReduceMean", [squares, graph.integers(-1)], {"keepdims": 1}, shape=shape)
        root = graph.node("Sqrt", [graph.node("Add", [mean, graph.number(norm.eps, DType.FLOAT32)])])
        scaled = graph.node("Mul", [wide, graph.node("Reciprocal", [root])])
        return graph.node("Mul", [graph.cast(scaled, dtype), weight])


def gated(graph: GraphBuilder, packed: ir.Value, names: Names, dtype: DType) -> ir.Value:
    """`silu(gate x) * up x` [B, T, I] of the packed projection [B, T, 2 I] of x by the weights `names`, in `dtype`.

    In float16 it is computed in fp32 and scaled as `stream_unit.py` says.
    """
    *rows, both = shape_of(packed)
    width = int(both) // 2
    with graph.module(layer_module(names[0], 3)):
        # Not two slices of the row: TensorRT would split the product in two, with a copy of its weights.
        pair = graph.node("Reshape", [packed, graph.integers(0, 0, 2, width)], shape=(*rows, 2, width))
        half = (None, IR_TYPES[dtype], (*rows, 1, width))
        halves = graph.nodes("Split", [pair], {"axis": 2, "num_outputs": 2}, [half, half])
        wide = DType.FLOAT32 if dtype is DType.FLOAT16 else dtype
        gate, up = (
            graph.cast(graph.node("Squeeze", [each, graph.integers(2)], shape=(*rows, width)), wide) for each in halves
        )
        silu = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        product = graph.node("Mul", [silu, up])
        if dtype is DType.FLOAT16:
            product = graph.node("Mul", [product, graph.number(stream_unit(dtype), DType.FLOAT32)])
        return graph.cast(product, dtype)
