"""Rounding the inputs of quantised products in fp32, in operators that ONNX Runtime has on the CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..specs import Precision
from .product_builder import ProductBuilder
from .quantized_form import STORED_TYPES
from .quantized_runs import Run

_NVFP4_GROUP = 16
_E2M1_LARGEST = 6.0
_LEAST_SCALE = 1e-30
"""In place of a scale of zero, whose numbers come out as zero: they are multiplied by that scale again."""


def fake_quantized(builder: ProductBuilder, run: Run) -> ir.Value:
    """The numbers that the product of a run sees of its input: fp32 [batch, tokens, in]."""
    x, scale = builder.projection.x, run.weights[0].input_scale
    if scale is None:
        return x
    factor = builder.constant("input_scale", scale)
    if run.precision is Precision.NVFP4:
        return _nvfp4(builder, x, factor)
    stored = STORED_TYPES[run.precision]
    (codes,) = builder.nodes("QuantizeLinear", [x, factor], {"output_dtype": int(stored)}, [stored])
    return builder.node("DequantizeLinear", [codes, factor])


def _nvfp4(builder: ProductBuilder, x: ir.Value, factor: ir.Value) -> ir.Value:
    """Groups of 16 with an e4m3 scale `max |x| / 6 / factor` each, of numbers rounded to e2m1, ties to even.

    ONNX Runtime has no float4. Neighbours in e2m1 are 0.5 apart below 2, 1 apart below 4 and 2 apart above; in units of
    that step, to round to even is to round the mantissa to even.
    """
    node, constant = builder.node, builder.constant
    groups = node("Reshape", [x, constant("groups", np.array([0, 0, -1, _NVFP4_GROUP]))])
    magnitude = node("Abs", [groups])
    largest = node("ReduceMax", [magnitude, constant("group_axis", np.array([-1]))], {"keepdims": 1})
    full = node("Div", [largest, node("Mul", [factor, constant("e2m1_largest", _E2M1_LARGEST)])])
    (codes,) = builder.nodes("Cast", [full], {"to": int(ir.DataType.FLOAT8E4M3FN)}, [ir.DataType.FLOAT8E4M3FN])
    scale = node("Mul", [node("Cast", [codes], {"to": int(ir.DataType.FLOAT)}), factor])
    divisor = node("Max", [scale, constant("least_scale", _LEAST_SCALE)])
    ratio = node("Min", [node("Div", [magnitude, divisor]), builder.constant("e2m1_limit", _E2M1_LARGEST)])

    def below(limit: float) -> ir.Value:
        threshold = constant(f"e2m1_below_{limit:.0f}", limit)
        return builder.nodes("Less", [ratio, threshold], None, [ir.DataType.BOOL])[0]

    steps = [constant(f"e2m1_step_{i}", step) for i, step in enumerate((0.5, 1.0, 2.0))]
    step = node("Where", [below(2.0), steps[0], node("Where", [below(4.0), steps[1], steps[2]])])
    rounded = node("Mul", [node("Round", [node("Div", [ratio, step])]), step])
    signed = node("Mul", [node("Mul", [rounded, node("Sign", [groups])]), scale])
    shape = builder.nodes("Shape", [x], None, [ir.DataType.INT64])[0]
    return node("Reshape", [signed, shape])
