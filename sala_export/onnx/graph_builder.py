"""Building an ONNX graph node by node, with names that say where in the model a node is.

TensorRT reports its fused layers under ONNX node names, and without a GPU that report is the only view into a plan. So
names carry layer and role: `layers.3.self_attn.qkvz_proj/MatMul`, `layers.3.self_attn/LightningAttention`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from ..checkpoint.config import MODEL_TYPE
from ..installation import VERSION
from ..specs import DType, TensorSpec

OPSET = 20
QUANTIZED_OPSET = 23
"""The first with float4, and with scales of another type than what they scale."""
_IR_VERSIONS = {OPSET: 10, QUANTIZED_OPSET: 11}

IR_TYPES = {
    DType.FLOAT32: ir.DataType.FLOAT,
    DType.FLOAT16: ir.DataType.FLOAT16,
    DType.BFLOAT16: ir.DataType.BFLOAT16,
    DType.INT32: ir.DataType.INT32,
    DType.INT64: ir.DataType.INT64,
    DType.FLOAT8_E4M3FN: ir.DataType.FLOAT8E4M3FN,
    DType.FLOAT4_E2M1FN: ir.DataType.FLOAT4E2M1,
    DType.INT8: ir.DataType.INT8,
    DType.UINT8: ir.DataType.UINT8,
}

FLAT_ROWS = "batch_tokens"
"""Extent of a tensor whose dimensions batch and tokens are one."""

Shape = Sequence[int | str]
Attributes = Mapping[str, Any]


class GraphBuilder:
    """A graph that grows. Every value gets a type and a shape, given or taken over from a node's first input."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset_imports = {"": opset}
        """Versions by domain, for whoever adds nodes of another domain."""
        self._graph = ir.Graph([], [], nodes=[], opset_imports=self.opset_imports, name=MODEL_TYPE)
        self._module = "graph"
        self._uses: Counter[str] = Counter()

    def model(self) -> ir.Model:
        """The graph as it stands, with what wrote it."""
        self._graph.opset_imports.update(self.opset_imports)
        return ir.Model(
            self._graph,
            ir_version=_IR_VERSIONS[self.opset_imports[""]],
            producer_name="sala-export",
            producer_version=VERSION,
        )

    @contextmanager
    def module(self, path: str) -> Iterator[None]:
        """Name nodes that are added meanwhile `path/Op`, with `_2` and so on where that is taken."""
        outer, self._module = self._module, path
        try:
            yield
        finally:
            self._module = outer

    def input(self, spec: TensorSpec) -> ir.Value:
        """A new input of the graph."""
        value = ir.Value(name=spec.name, type=ir.TensorType(IR_TYPES[spec.dtype]), shape=ir.Shape(spec.shape))
        self._graph.inputs.append(value)
        return value

    def output(self, value: ir.Value) -> None:
        """Make a value the next output of the graph."""
        self._graph.outputs.append(value)

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """The initializer of this name, which is `tensor` if there is none yet."""
        if name not in self._graph.initializers:
            value = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(list(tensor.shape.numpy())),
                const_value=tensor,
            )
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def number(self, value: float, dtype: DType) -> ir.Value:
        """A constant [], rounded to `dtype`; equal ones are one initializer, `number.bfloat16.0.625`."""
        rounded = np.asarray(value, np.float32).astype(IR_TYPES[dtype].numpy())
        return self.initializer(f"number.{dtype}.{float(rounded)!r}", ir.tensor(rounded))

    def integers(self, *values: int) -> ir.Value:
        """A constant int64 [n], for axes and shapes; equal ones are one initializer."""
        return self.initializer(f"integers.{'_'.join(map(str, values))}", ir.tensor(np.array(values, np.int64)))

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes | None = None,
        *,
        dtype: ir.DataType | None = None,
        shape: Shape | None = None,
        domain: str = "",
        name: str | None = None,
    ) -> ir.Value:
        """The output of a new node: named `name`, or as the node; of its first input's type and shape unless given."""
        dtype, shape = dtype or _dtype(inputs[0]), shape_of(inputs[0]) if shape is None else shape
        return self.nodes(op_type, inputs, attributes, [(name, dtype, shape)], domain=domain)[0]

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes | None,
        outputs: Sequence[tuple[str | None, ir.DataType, Shape]],
        *,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """The outputs of a new node, as their names (or None), types and shapes are given."""
        base = f"{self._module}/{op_type}"
        self._uses[base] += 1
        node_name = base if self._uses[base] == 1 else f"{base}_{self._uses[base]}"
        values = [
            ir.Value(
                name=name or (node_name if i == 0 else f"{node_name}.{i}"),
                type=ir.TensorType(dtype),
                shape=ir.Shape(shape),
            )
            for i, (name, dtype, shape) in enumerate(outputs)
        ]
        self._graph.append(ir.node(op_type, inputs, attributes or {}, domain=domain, outputs=values, name=node_name))
        return values

    def cast(self, x: ir.Value, dtype: DType, *, name: str | None = None) -> ir.Value:
        """`x` in another type; `x` itself where it has that type."""
        target = IR_TYPES[dtype]
        if x.dtype is target:
            return x
        return self.node("Cast", [x], {"to": int(target)}, dtype=target, name=name)

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Values side by side along an axis whose extents are numbers; the only one, as it is."""
        if len(values) == 1:
            return values[0]
        shape = list(shape_of(values[0]))
        shape[axis] = sum(int(shape_of(value)[axis]) for value in values)
        return self.node("Concat", values, {"axis": axis}, shape=shape)


def shape_of(value: ir.Value) -> tuple[int | str, ...]:
    """Extents of a value of the builder; strings are symbolic."""
    assert value.shape is not None
    return tuple(extent if isinstance(extent, int) else str(extent.value) for extent in value.shape)


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype
