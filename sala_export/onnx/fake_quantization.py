"""Rounding the inputs of quantised products in fp32, in operators that ONNX Runtime has on the CPU.

Where an input has one scale, the product takes codes, whose few bits bf16 holds, and multiplies by the scale later.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ..checkpoint.quantization import SCHEMES
from ..numerics.number_formats import E4M3_MAX, E8M0_VALUES, MX_BLOCK
from ..specs import DType, Precision
from .graph_builder import IR_TYPES, GraphBuilder, shape_of
from .nvfp4 import NVFP4_BLOCK

_LEAST_EXPONENT = -127.0
"""That of the least scale that e8m0 has."""
_LEAST_SCALE = 1e-30
"""In place of a scale of zero, whose numbers come out as zero: they are multiplied by that scale again."""


def codes_of(graph: GraphBuilder, x: ir.Value, dtype: DType, scale: ir.Value) -> ir.Value:
    """The codes of an input of fp8 or int8 as numbers, fp32 [batch, tokens, in].

    Args: `dtype` of the codes; `scale` fp32 [1] or [], which takes them back to the input.
    """
    stored = IR_TYPES[dtype]
    codes = graph.node("QuantizeLinear", [x, scale], {"output_dtype": int(stored)}, dtype=stored)
    return graph.cast(codes, DType.FLOAT32)


def token_scales(graph: GraphBuilder, x: ir.Value, dtype: DType) -> ir.Value:
    """The scale of each row of `x` fp32 [..., in], fp32 [..., 1]: what takes its largest number to the largest code.

    Args: `dtype` of the codes.
    """
    largest = next(scheme.largest for scheme in SCHEMES.values() if scheme.input_type is dtype)
    shape = (*shape_of(x)[:-1], 1)
    magnitude = graph.node("Abs", [x])
    row = graph.node("ReduceMax", [magnitude, graph.integers(-1)], {"keepdims": 1}, shape=shape)
    return graph.node("Max", [graph.node("Div", [row, _number(graph, largest)]), _number(graph, _LEAST_SCALE)])


def rounded_by_token(graph: GraphBuilder, x: ir.Value, dtype: DType) -> ir.Value:
    """The numbers that a product of fp8 or int8 sees of its input if each row has a scale: fp32 [..., in]."""
    scale = token_scales(graph, x, dtype)
    codes = codes_of(graph, graph.node("Div", [x, scale]), dtype, _number(graph, 1.0))
    return graph.node("Mul", [codes, scale])


def rounded_by_block(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """The numbers that a product of mxfp8 sees of its input, by `numerics/block_scales.py`: fp32 [batch, tokens, in].

    Each block of 32 neighbours is e4m3 numbers times a power of two.
    """
    e4m3, scale = ir.DataType.FLOAT8E4M3FN, block_scales(graph, x)
    blocks = {"axis": -1, "block_size": MX_BLOCK}
    codes = graph.node("QuantizeLinear", [x, scale], {**blocks, "output_dtype": int(e4m3)}, dtype=e4m3)
    return graph.node("DequantizeLinear", [codes, scale], blocks, dtype=ir.DataType.FLOAT)


def block_scales(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """The powers of two of the blocks of `x` fp32 [batch, tokens, in], fp32 [batch, tokens, in / 32].

    Each is the least from 2^-127 up by which the largest magnitude of its block is at most 448. Logarithms are rounded,
    so they only tell the nearest power: it is the one, or the next is, and a comparison says which without error. NaN
    and infinities times zero are NaN, and so is then the scale.
    """
    node, *rows, columns = graph.node, *shape_of(x)
    shape = (*rows, int(columns) // MX_BLOCK)
    blocks = node("Reshape", [x, graph.integers(0, 0, -1, MX_BLOCK)], shape=(*shape, MX_BLOCK))
    last, dropped = graph.integers(-1), {"keepdims": 0}
    largest = node("ReduceMax", [node("Abs", [blocks]), last], dropped, shape=shape)
    spoiled = node("ReduceSum", [node("Mul", [blocks, _number(graph, 0.0)]), last], dropped, shape=shape)
    limit, two = _number(graph, E4M3_MAX), _number(graph, 2.0)
    logarithm = node("Div", [node("Log", [node("Div", [largest, limit])]), _number(graph, math.log(2.0))])
    exponent = node("Max", [node("Round", [logarithm]), _number(graph, _LEAST_EXPONENT)])
    nearest = node("Pow", [two, exponent], shape=shape)
    is_too_small = node("Less", [node("Mul", [nearest, limit]), largest], dtype=ir.DataType.BOOL)
    scale = node("Where", [is_too_small, node("Mul", [nearest, two]), nearest], dtype=ir.DataType.FLOAT, shape=shape)
    return node("Add", [scale, spoiled])


def scale_values(graph: GraphBuilder, scales: ir.Value) -> ir.Value:
    """The powers of two that stored e8m0 bytes, uint8, stand for: fp32 of the same shape, NaN for the byte 255."""
    values = graph.initializer("e8m0_values", ir.tensor(E8M0_VALUES))
    bytes_ = graph.cast(scales, DType.INT32)
    return graph.node("Gather", [values, bytes_], shape=shape_of(scales))


def nvfp4_codes(graph: GraphBuilder, x: ir.Value, input_scale: float) -> ir.Value:
    """The numbers that a product of nvfp4 sees of its input, over `input_scale`: fp32 [batch, tokens, in].

    Groups of 16 with an e4m3 scale `max |x| / 6 / input_scale` each, of numbers rounded to e2m1, ties to even. ONNX
    Runtime has no float4. Neighbours in e2m1 are 0.5 apart below 2, 1 apart below 4 and 2 apart above; in units of that
    step, to round to even is to round the mantissa to even.
    """
    node, factor = graph.node, _number(graph, input_scale)
    largest = _number(graph, SCHEMES[Precision.NVFP4].largest)
    *rows, columns = shape_of(x)
    shape = (*rows, int(columns) // NVFP4_BLOCK, NVFP4_BLOCK)
    groups = node("Reshape", [x, graph.integers(0, 0, -1, NVFP4_BLOCK)], shape=shape)
    magnitude = node("Abs", [groups])
    codes = _group_scales(graph, magnitude, node("Mul", [factor, largest]))
    scale = node("Mul", [codes, factor])
    ratio = node("Min", [node("Div", [magnitude, node("Max", [scale, _number(graph, _LEAST_SCALE)])]), largest])
    step = _e2m1_step(graph, ratio)
    nearest = node("Mul", [node("Round", [node("Div", [ratio, step])]), step])
    signed = node("Mul", [node("Mul", [nearest, node("Sign", [groups])]), codes])
    return node("Reshape", [signed, graph.integers(0, 0, int(columns))], shape=shape_of(x))


def _number(graph: GraphBuilder, value: float) -> ir.Value:
    return graph.number(value, DType.FLOAT32)


def _group_scales(graph: GraphBuilder, magnitude: ir.Value, divisor: ir.Value) -> ir.Value:
    """`e4m3(max magnitude / divisor)`, fp32 [batch, tokens, groups, 1]."""
    shape = (*shape_of(magnitude)[:-1], 1)
    largest = graph.node("ReduceMax", [magnitude, graph.integers(-1)], {"keepdims": 1}, shape=shape)
    codes = graph.cast(graph.node("Div", [largest, divisor]), DType.FLOAT8_E4M3FN)
    return graph.cast(codes, DType.FLOAT32)


def _e2m1_step(graph: GraphBuilder, ratio: ir.Value) -> ir.Value:
    """The distance of neighbours in e2m1 at each magnitude."""

    def below(limit: float) -> ir.Value:
        return graph.node("Less", [ratio, _number(graph, limit)], dtype=ir.DataType.BOOL)

    fine, middle, coarse = (_number(graph, step) for step in (0.5, 1.0, 2.0))
    upper = graph.node("Where", [below(4.0), middle, coarse], dtype=ir.DataType.FLOAT, shape=shape_of(ratio))
    return graph.node("Where", [below(2.0), fine, upper], dtype=ir.DataType.FLOAT, shape=shape_of(ratio))
