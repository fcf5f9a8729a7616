"""Finding the projections of a traced graph: `x @ Transpose(Concat(w...))`, or of a single weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """A product with weights [out, in] that have no value yet."""

    product: ir.Node
    """The MatMul."""
    x: ir.Value
    weights: tuple[ir.Value, ...]
    """Initializers whose rows it takes, one after the other."""

    def replace(self, result: ir.Value, graph: ir.Graph, kept: Collection[ir.Value] = ()) -> None:
        """Let `result`, which is computed before the product, take the product's place; weights go unless `kept`."""
        output = self.product.outputs[0]
        result.name, result.type, result.shape = output.name, output.type, output.shape
        ir.convenience.replace_all_uses_with(output, result)
        graph.remove(self.product, safe=True)
        for weight in self.weights:
            if weight in kept:
                continue
            assert weight.name is not None
            graph.initializers.pop(weight.name, None)


def projections(graph: ir.Graph) -> Iterator[Projection]:
    """Every projection, in the order of the graph, which may be changed meanwhile."""
    for node in list(graph):
        right = node.inputs[1] if node.op_type == "MatMul" else None
        transpose = right.producer() if right is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        x, source = node.inputs[0], transpose.inputs[0]
        assert x is not None
        assert source is not None
        concat = source.producer()
        parts = [source] if concat is None else [value for value in concat.inputs if value is not None]
        yield Projection(product=node, x=x, weights=tuple(parts))


def packed_name(tensors: tuple[str, ...]) -> str:
    """`...self_attn.q_proj.weight` and its siblings become `...self_attn.q_proj+k_proj+v_proj+o_gate.weight`."""
    if len(tensors) == 1:
        return tensors[0]
    module = tensors[0].split(".")[:-2]
    return ".".join([*module, "+".join(name.split(".")[-2] for name in tensors), "weight"])


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Shape of a value that has no symbolic dimension."""
    assert value.shape is not None
    return tuple(value.shape.numpy())
