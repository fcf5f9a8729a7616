"""Quantised projections in the graph that an engine is built from.

A product becomes `DQ(Q(x)) @ Transpose(DQ(w))`, which TensorRT fuses into one product of the quantised type. What a
pack holds in 16 bits, the gates of the mixers as a rule, stays a product of its own, and both are concatenated.
docs/quantisation.md has the forms and what TensorRT makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import optimizer

from ..checkpoint.reader import Checkpoint
from ..specs import Precision
from .naming import module_of
from .projections import Projection, projections
from .quantized_runs import PlacedRun, Run, Span, place_runs
from .trace import checkpoint_name

QUANTIZED_OPSET = 23
"""The first with float4 and with scales of another type than what they scale."""
TENSORRT_DOMAIN = "trt"

_STORED = {
    Precision.FP8: ir.DataType.FLOAT8E4M3FN,
    Precision.INT8: ir.DataType.INT8,
    Precision.INT4: ir.DataType.INT4,
    Precision.NVFP4: ir.DataType.FLOAT4E2M1,
}
_SCALES = {Precision.INT4: ir.DataType.BFLOAT16, Precision.NVFP4: ir.DataType.FLOAT8E4M3FN}


def quantized_runs(checkpoint: Checkpoint, weights: Sequence[str]) -> list[Run | tuple[str, ...]]:
    """The weights of a projection, by name and in their order, cut where quantised ones end: names are of others."""
    runs: list[Run | tuple[str, ...]] = []
    for is_quantized, group in groupby(weights, key=lambda name: name in checkpoint.quantized):
        names = tuple(group)
        runs.append(Run(weights=tuple(checkpoint.quantized[name] for name in names)) if is_quantized else names)
    return runs


def quantize_projections(model: ir.Model, checkpoint: Checkpoint, directory: Path, placed: Mapping[Path, str]) -> None:
    """Give every projection of `checkpoint.quantized` its quantised form; other weights stay without a value.

    Args: `placed`, the checkpoint's files, which lie in `directory`, by path.
    Raises: DiskFullError if weights must be written once more and do not fit the disk.
    """
    cut = {
        projection: quantized_runs(checkpoint, [checkpoint_name(weight) for weight in projection.weights])
        for projection in projections(model.graph)
        if any(checkpoint_name(weight) in checkpoint.quantized for weight in projection.weights)
    }
    runs = [run for pieces in cut.values() for run in pieces if isinstance(run, Run)]
    by_name = {each.run.name: each for each in place_runs(runs, directory, placed)}
    for projection, pieces in cut.items():
        builder = _Builder(model.graph, projection, directory)
        products = [
            builder.quantized(by_name[piece.name], whole=len(pieces) == 1)
            if isinstance(piece, Run)
            else builder.plain(piece)
            for piece in pieces
        ]
        result = products[0] if len(products) == 1 else builder.concat(products)
        projection.replace(result, model.graph, builder.kept)
    optimizer.remove_unused_nodes(model)
    model.opset_imports[""] = QUANTIZED_OPSET
    if checkpoint.precision is Precision.NVFP4:
        model.opset_imports[TENSORRT_DOMAIN] = 1


class _Builder:
    """Nodes in the place of one projection, named after what they compute: `layers.3.self_attn.qkv_proj/MatMul`."""

    def __init__(self, graph: ir.Graph, projection: Projection, directory: Path) -> None:
        self.graph = graph
        self.projection = projection
        self.directory = directory
        self.kept: list[ir.Value] = []
        """Weights that products in 16 bits still read."""
        self._traced = module_of(projection.product)
        self._module = self._traced

    def quantized(self, placed: PlacedRun, *, whole: bool) -> ir.Value:
        """The product with a run, which is all of the projection or a part of it."""
        run = placed.run
        if not whole:
            roles = [weight.name.split(".")[-2] for weight in run.weights]
            part = roles[0] if len(roles) == 1 else "".join(role[0] for role in roles) + "_proj"
            self._module = f"{self._traced.rpartition('.')[0]}.{part}"
        return self._product(self._input(run), self._weight(placed))

    def plain(self, names: tuple[str, ...]) -> ir.Value:
        """The product with weights in 16 bits; more than one of them never stays apart from a quantised pack."""
        (weight,) = (value for value in self.projection.weights if checkpoint_name(value) in names)
        self._module = f"{self._traced.rpartition('.')[0]}.{names[0].split('.')[-2]}"
        self.kept.append(weight)
        return self._product(self.projection.x, weight)

    def concat(self, products: Sequence[ir.Value]) -> ir.Value:
        """The products side by side, as the operator takes them."""
        self._module = self._traced
        return self._node("Concat", products, {"axis": -1})

    def _input(self, run: Run) -> ir.Value:
        """The input as the product sees it: quantised and back."""
        x, precision, scale = self.projection.x, run.precision, run.weights[0].input_scale
        if scale is None:
            return x
        factor = self._constant("input_scale", np.array(scale, np.float32))
        if precision is Precision.NVFP4:
            rounded, scales = self._nodes(
                "TRT_FP4DynamicQuantize",
                [x, factor],
                {"axis": -1, "block_size": 16, "scale_type": int(ir.DataType.FLOAT8E4M3FN)},
                [_STORED[precision], ir.DataType.FLOAT8E4M3FN],
                domain=TENSORRT_DOMAIN,
            )
            widened = self._node("DequantizeLinear", [scales, factor], {"output_dtype": int(self._dtype)})
            return self._node("DequantizeLinear", [rounded, widened], {"axis": -1, "block_size": 16})
        stored = {"output_dtype": int(_STORED[precision])}
        (rounded,) = self._nodes("QuantizeLinear", [x, factor], stored, [_STORED[precision]])
        return self._node("DequantizeLinear", [rounded, factor], {"output_dtype": int(self._dtype)})

    def _weight(self, placed: PlacedRun) -> ir.Value:
        """The weight [out, in] in the type of the activations."""
        run, first = placed.run, placed.run.weights[0]
        data = self._external(run.name, placed.data, _STORED[run.precision], run.shape)
        if placed.scale is None:
            scales = run.flat_scales()
            axis = {"axis": 0} if scales.ndim else {}
            scale = self._constant("weight_scale", scales)
            return self._node("DequantizeLinear", [data, scale], {**axis, "output_dtype": int(self._dtype)})
        scale = self._external(run.scale_name, placed.scale, _SCALES[run.precision], run.scale_shape)
        if run.precision is Precision.NVFP4:
            factor = self._constant("weight_global_scale", np.array(first.global_scale, np.float32))
            scale = self._node("DequantizeLinear", [scale, factor], {"output_dtype": int(self._dtype)})
        group = run.shape[1] // run.scale_shape[1]
        return self._node("DequantizeLinear", [data, scale], {"axis": 1, "block_size": group})

    def _product(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        # Behind the dequantisation: the other way round an engine with a one-token profile stores the weight twice.
        return self._node("MatMul", [x, self._node("Transpose", [weight], {"perm": [1, 0]})], {})

    @property
    def _dtype(self) -> ir.DataType:
        assert self.projection.x.dtype is not None
        return self.projection.x.dtype

    def _node(self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> ir.Value:
        """The output of a new node, in the type of the activations."""
        return self._nodes(op_type, inputs, attributes, [self._dtype])[0]

    def _nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any],
        dtypes: Sequence[ir.DataType],
        domain: str = "",
    ) -> Sequence[ir.Value]:
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(dtypes))
        node.name = f"{self._module}/{op_type}"
        for output, dtype in zip(node.outputs, dtypes, strict=True):
            output.dtype = dtype
        self.graph.insert_before(self.projection.product, node)
        return node.outputs

    def _constant(self, role: str, value: NDArray[np.float32]) -> ir.Value:
        return self._initializer(f"model.{self._module}.{role}", ir.tensor(value), value.shape)

    def _external(self, name: str, where: Span, dtype: ir.DataType, shape: tuple[int, int]) -> ir.Value:
        return self._initializer(
            name,
            ir.ExternalTensor(
                where.file,
                where.offset,
                where.length,
                dtype,
                shape=ir.Shape(shape),
                name=name,
                base_dir=self.directory,
            ),
            shape,
        )

    def _initializer(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value
