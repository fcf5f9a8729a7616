"""The graph as ONNX tools expect it: weights are initializers, in the checkpoint's own files.

A quantised product is `DQ(Q(x)) @ Transpose(Concat(DQ(w)...))`. docs/quantisation.md has the forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..checkpoint.keymap import EMBEDDING
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensor_location import TensorFile, TensorLocation
from ..specs import DType, Precision
from .fake_quantization import rounded_by_block, rounded_by_token, scale_values
from .graph_builder import IR_TYPES, OPSET, QUANTIZED_OPSET, GraphBuilder, Shape, shape_of
from .layer_parts import SeparateParts, gated, rms_norm
from .nvfp4 import nvfp4_input
from .products import Names, add_scaled, scales_of, split_product
from .step_graph import Norm

_INT4_ZERO = 8


class ModelForm(SeparateParts):
    """See `step_graph.Form`."""

    def __init__(
        self, checkpoint: Checkpoint, precision: Precision, placed: Mapping[TensorFile, str], folder: Path
    ) -> None:
        """Args: `placed`, the checkpoint's files, which lie in `folder`, by path."""
        self.graph = GraphBuilder(QUANTIZED_OPSET if checkpoint.quantized else OPSET)
        self.dtype = precision.dtype
        self._checkpoint, self._placed, self._folder = checkpoint, placed, folder
        self._sums = DType.FLOAT32 if self.dtype is DType.FLOAT16 else self.dtype
        self._cast: dict[str, ir.Value] = {}
        self._zeros: dict[tuple[int, int], ir.Value] = {}

    @property
    def cache_dtype(self) -> DType:
        return self.dtype

    def embedding(self) -> ir.Value:
        return self._stored(EMBEDDING)

    def norm(self, x: ir.Value, norm: Norm) -> ir.Value:
        return rms_norm(self.graph, x, self._plain(norm.weight), norm, self.dtype)

    def operator_weight(self, name: str) -> ir.Value:
        return self._plain(name)

    def product(self, x: ir.Value, names: Names) -> ir.Value:
        kind = scales_of(self._checkpoint.quantized)
        return split_product(self.graph, names, kind, lambda part: self._product(x, part))

    def gated_product(self, x: ir.Value, names: Names) -> ir.Value:
        return gated(self.graph, self.product(x, names), names, self.dtype)

    def residual_product(self, stream: ir.Value, x: ir.Value, name: str, scale: float) -> ir.Value:
        return add_scaled(self.graph, stream, self.product(x, (name,)), name, self.graph.number(scale, self.dtype))

    def _product(self, x: ir.Value, names: Names) -> ir.Value:
        """The products of weights that are all quantised, or none of them.

        A float16 product is stated in fp32 between casts, so that its sums are in fp32.
        """
        graph, quantized = self.graph, self._checkpoint.quantized
        if names[0] in quantized:
            x = self._quantized_input(x, quantized[names[0]])
            weights = [self._dequantized(quantized[name]) for name in names]
        else:
            weights = [self._plain(name) for name in names]
        weight = graph.cast(graph.concat(weights, 0), self._sums)
        rows, columns = shape_of(weight)
        transposed = graph.node("Transpose", [weight], {"perm": [1, 0]}, shape=(columns, rows))
        wide = graph.cast(x, self._sums)
        return graph.cast(graph.node("MatMul", [wide, transposed], shape=(*shape_of(x)[:-1], rows)), self.dtype)

    def _plain(self, name: str) -> ir.Value:
        """A weight that is not quantised, in `dtype`."""
        if name not in self._cast:
            with self.graph.module(name):
                self._cast[name] = self.graph.cast(self._stored(name), self.dtype)
        return self._cast[name]

    def _stored(self, name: str) -> ir.Value:
        location = self._checkpoint.locations[name]
        return self._external(name, location, IR_TYPES[location.dtype], location.shape)

    def _external(self, name: str, where: TensorLocation, dtype: ir.DataType, shape: Shape) -> ir.Value:
        """An initializer whose bytes are those of a stored tensor."""
        file, span = self._placed[where.file], (where.offset, where.length)
        tensor = ir.ExternalTensor(file, *span, dtype, shape=ir.Shape(shape), name=name, base_dir=self._folder)
        return self.graph.initializer(name, tensor)

    def _quantized_input(self, x: ir.Value, weight: QuantizedWeight) -> ir.Value:
        """The input as the product sees it: quantised and back."""
        graph = self.graph
        if weight.by_token:
            return graph.cast(rounded_by_token(graph, graph.cast(x, DType.FLOAT32), _input_type(weight)), self.dtype)
        if weight.precision is Precision.MXFP8:
            return graph.cast(rounded_by_block(graph, graph.cast(x, DType.FLOAT32)), self.dtype)
        if weight.input_scale is None:
            return x
        stored, dtype = _stored_type(weight), IR_TYPES[self.dtype]
        if weight.precision is Precision.NVFP4:
            return nvfp4_input(graph, x, graph.number(weight.input_scale, DType.FLOAT32))
        assert weight.input_scale_name is not None
        factor = self._scales(weight, weight.input_scale_name, ())
        codes = graph.node("QuantizeLinear", [x, factor], {"output_dtype": int(stored)}, dtype=stored)
        return graph.node("DequantizeLinear", [codes, factor], {"output_dtype": int(dtype)}, dtype=dtype)

    def _dequantized(self, weight: QuantizedWeight) -> ir.Value:
        """The weight [out, in] in `dtype`."""
        graph, dtype = self.graph, IR_TYPES[self.dtype]
        codes = self._external(weight.data_name, weight.data, _stored_type(weight), weight.shape)
        attributes: dict[str, int] = {"output_dtype": int(dtype)}
        inputs = [codes]
        if weight.scheme.group:
            scale = self._external(weight.scale_name, weight.scale, IR_TYPES[weight.scale.dtype], weight.scale_shape)
            attributes = {"axis": 1, "block_size": weight.shape[1] // weight.scale_shape[1]}
            if weight.precision is Precision.MXFP8:
                inputs.append(scale_values(graph, scale))
                attributes["output_dtype"] = int(dtype)
            elif weight.precision is Precision.INT4:
                if weight.scale.dtype is not self.dtype:
                    # Products of codes and fp16 scales are rounded once, not to fp16 before.
                    scale = graph.cast(scale, DType.FLOAT32)
                inputs += [scale, self._zero_points(weight.scale_shape)]
            else:
                factor = graph.number(weight.global_scale, DType.FLOAT32)
                widened = {"output_dtype": int(dtype)}
                inputs.append(graph.node("DequantizeLinear", [scale, factor], widened, dtype=dtype))
        elif weight.scale_shape == (1, 1):
            inputs.append(self._scales(weight, weight.scale_name, ()))
        else:
            inputs.append(self._scales(weight, weight.scale_name, weight.shape[:1]))
            attributes["axis"] = 0
        return graph.node("DequantizeLinear", inputs, attributes, dtype=dtype)

    def _scales(self, weight: QuantizedWeight, name: str, shape: Shape) -> ir.Value:
        """Stored scales in fp32, of this shape."""
        where = weight.tensors[name]
        return self.graph.cast(self._external(name, where, IR_TYPES[where.dtype], shape), DType.FLOAT32)

    def _zero_points(self, shape: tuple[int, int]) -> ir.Value:
        """UINT4 of this shape, which take no space in a file: compressed-tensors stores int4 codes plus 8."""
        if shape not in self._zeros:
            # Not ConstantOfShape in UINT4, which ONNX Runtime lacks.
            with self.graph.module("int4_zero_points"):
                value = ir.tensor(np.array([_INT4_ZERO], np.uint8))
                sizes, wide, stored = [self.graph.integers(*shape)], ir.DataType.UINT8, ir.DataType.UINT4
                codes = self.graph.node("ConstantOfShape", sizes, {"value": value}, dtype=wide, shape=shape)
                self._zeros[shape] = self.graph.node("Cast", [codes], {"to": int(stored)}, dtype=stored)
        return self._zeros[shape]


def _input_type(weight: QuantizedWeight) -> DType:
    """Type of the codes of an input that is quantised."""
    dtype = weight.scheme.input_type
    assert dtype is not None
    return dtype


def _stored_type(weight: QuantizedWeight) -> ir.DataType:
    """ONNX type of its codes."""
    dtype = weight.scheme.input_type
    return ir.DataType.UINT4 if dtype is None else IR_TYPES[dtype]
