"""New nodes in the place of a projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..checkpoint.reader import Checkpoint
from .naming import module_of
from .projections import Projection
from .quantized_runs import Piece, Run, cut_runs
from .trace import checkpoint_name


class ProductBuilder:
    """Adds nodes before the product of a projection, with names of what they compute, as `naming.py` has them.

    A projection whose weights are quantised in part becomes a product for each run of weights alike.
    """

    def __init__(self, graph: ir.Graph, projection: Projection, checkpoint: Checkpoint) -> None:
        self.graph = graph
        self.projection = projection
        self.pieces = cut_runs(checkpoint, [checkpoint_name(weight) for weight in projection.weights])
        self._traced = module_of(projection.product)
        self._module = self._traced

    @property
    def runs(self) -> list[Run]:
        """The quantised ones of the pieces."""
        return [piece for piece in self.pieces if isinstance(piece, Run)]

    @property
    def dtype(self) -> ir.DataType:
        """Type of the activations."""
        assert self.projection.x.dtype is not None
        return self.projection.x.dtype

    def enter(self, piece: Piece) -> None:
        """Name what follows after a piece of the projection."""
        names = piece.names if isinstance(piece, Run) else piece
        roles = [name.split(".")[-2] for name in names]
        part = roles[0] if len(roles) == 1 else "".join(role[0] for role in roles) + "_proj"
        self._module = self._traced if len(self.pieces) == 1 else f"{self._traced.rpartition('.')[0]}.{part}"

    def join(self, products: Sequence[ir.Value]) -> ir.Value:
        """The products of all pieces side by side, as the operator takes them."""
        self._module = self._traced
        return products[0] if len(products) == 1 else self.node("Concat", products, {"axis": -1})

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None, domain: str = ""
    ) -> ir.Value:
        """The output of a new node, in the type of the activations."""
        return self.nodes(op_type, inputs, attributes, [self.dtype], domain)[0]

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any] | None,
        dtypes: Sequence[ir.DataType],
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """The outputs of a new node, of these types."""
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=len(dtypes))
        node.name = f"{self._module}/{op_type}"
        for output, dtype in zip(node.outputs, dtypes, strict=True):
            output.dtype = dtype
        self.graph.insert_before(self.projection.product, node)
        return node.outputs

    def constant(self, role: str, value: NDArray[Any] | float) -> ir.Value:
        """A constant of the current piece; numbers are fp32 [], arrays keep their type."""
        array = np.asarray(value, np.float32) if isinstance(value, float) else value
        return self.initializer(f"model.{self._module}.{role}", ir.tensor(array), array.shape)

    def initializer(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        """A new initializer of the graph."""
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value
