"""The nodes that round an input to NVFP4 in TensorRT's operator: ONNX has none that finds the scales of blocks."""

from __future__ import annotations

import onnx_ir as ir

from .graph_builder import GraphBuilder, shape_of

TENSORRT_DOMAIN = "trt"
NVFP4_BLOCK = 16


def nvfp4_input(graph: GraphBuilder, x: ir.Value, factor: ir.Value) -> ir.Value:
    """Quantise `x` [..., in] for a product: e2m1 numbers in blocks of 16 with an e4m3 scale each, in the type of `x`.

    Args: `factor`, a constant fp32 [] that the scales are multiplied by.
    """
    graph.opset_imports[TENSORRT_DOMAIN] = 1
    e4m3, dtype = ir.DataType.FLOAT8E4M3FN, x.dtype
    assert dtype is not None
    *rows, columns = shape_of(x)
    codes, scales = graph.nodes(
        "TRT_FP4DynamicQuantize",
        [x, factor],
        {"axis": -1, "block_size": NVFP4_BLOCK, "scale_type": int(e4m3)},
        [(None, ir.DataType.FLOAT4E2M1, shape_of(x)), (None, e4m3, (*rows, int(columns) // NVFP4_BLOCK))],
        domain=TENSORRT_DOMAIN,
    )
    wide = graph.node("DequantizeLinear", [scales, factor], {"output_dtype": int(dtype)}, dtype=dtype)
    return graph.node("DequantizeLinear", [codes, wide], {"axis": -1, "block_size": NVFP4_BLOCK}, dtype=dtype)
