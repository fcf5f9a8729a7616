"""Nodes of products of MXFP8 operands, which are this project's own operators on a GPU (docs/operators.md).

What a product takes is quantised by the node before it: the norm, the gated unit of the MLP, or a node of its own
behind an attention. TensorRT's MXFP8 would be a quantisation, a dequantisation and a product in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..numerics.number_formats import WORD_COLUMNS
from ..ops.block_quantize.schema import CONTRACT as BLOCK_QUANTIZE
from ..ops.block_scaled_linear.schema import CONTRACT as BLOCK_SCALED_LINEAR
from ..ops.block_scaled_linear_add.schema import CONTRACT as BLOCK_SCALED_LINEAR_ADD
from ..ops.common.contract import Contract
from ..ops.rms_norm_block_quantize.schema import CONTRACT as RMS_NORM_BLOCK_QUANTIZE
from ..specs import OPERATOR_DOMAIN
from .graph_builder import GraphBuilder, shape_of
from .step_graph import PLUGIN_ATTRIBUTES


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """An operand: e4m3 codes and the words of their scales, as `sala_export/numerics/block_scales.py` defines them."""

    codes: ir.Value
    """[B, T, in], of a weight [out, in]."""
    scales: ir.Value
    """int32 [in / 128, B, T], of a weight [in / 128, out]."""


def quantized(graph: GraphBuilder, x: ir.Value) -> ScaledRows:
    """`x` [B, T, in]."""
    return _rows(graph, BLOCK_QUANTIZE, [x], int(shape_of(x)[-1]), {"gated": 0})


def gated_quantized(graph: GraphBuilder, packed: ir.Value) -> ScaledRows:
    """`silu(gate) * up` [B, T, in] of a packed projection [B, T, 2 in]."""
    return _rows(graph, BLOCK_QUANTIZE, [packed], int(shape_of(packed)[-1]) // 2, {"gated": 1})


def normed_quantized(graph: GraphBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ScaledRows:
    """The RMSNorm of `x` [B, T, in] with `weight` [in]."""
    return _rows(graph, RMS_NORM_BLOCK_QUANTIZE, [x, weight], int(shape_of(x)[-1]), {"eps": eps})


def product(graph: GraphBuilder, x: ScaledRows, weight: ScaledRows, dtype: ir.DataType) -> ir.Value:
    """`x @ weight.T` [B, T, out] in `dtype`."""
    inputs, shape = _operands(x, weight)
    attributes = dict(PLUGIN_ATTRIBUTES)
    return graph.node(
        BLOCK_SCALED_LINEAR.onnx_type, inputs, attributes, dtype=dtype, shape=shape, domain=OPERATOR_DOMAIN
    )


def product_added(graph: GraphBuilder, stream: ir.Value, x: ScaledRows, weight: ScaledRows, factor: float) -> ir.Value:
    """`stream + factor * (x @ weight.T)` [B, T, out] in the type of `stream`, rounded once."""
    inputs, shape = _operands(x, weight)
    return graph.node(
        BLOCK_SCALED_LINEAR_ADD.onnx_type,
        [*inputs, stream],
        {"factor": factor, **PLUGIN_ATTRIBUTES},
        dtype=stream.dtype,
        shape=shape,
        domain=OPERATOR_DOMAIN,
    )


def _operands(x: ScaledRows, weight: ScaledRows) -> tuple[list[ir.Value], tuple[int | str, ...]]:
    shape = (*shape_of(x.codes)[:-1], shape_of(weight.codes)[0])
    return [x.codes, x.scales, weight.codes, weight.scales], shape


def _rows(
    graph: GraphBuilder, contract: Contract, inputs: list[ir.Value], columns: int, attributes: Mapping[str, int | float]
) -> ScaledRows:
    rows = shape_of(inputs[0])[:-1]
    outputs = [
        (None, ir.DataType.FLOAT8E4M3FN, (*rows, columns)),
        (None, ir.DataType.INT32, (columns // WORD_COLUMNS, *rows)),
    ]
    codes, scales = graph.nodes(
        contract.onnx_type,
        inputs,
        {"columns": columns, **attributes, **PLUGIN_ATTRIBUTES},
        outputs,
        domain=OPERATOR_DOMAIN,
    )
    return ScaledRows(codes, scales)
