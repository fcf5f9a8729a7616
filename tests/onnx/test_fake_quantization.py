"""Nodes that round inputs of mxfp8 and decode its scales, in ONNX Runtime, against their definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from support.stored_products import mxfp8_cases, mxfp8_inputs

from sala_export.numerics.block_scales import mxfp8_values, quantize_mxfp8
from sala_export.onnx.fake_quantization import rounded_by_block, scale_values
from sala_export.onnx.graph_builder import QUANTIZED_OPSET, GraphBuilder
from sala_export.specs import DType, TensorSpec

Array = NDArray[Any]


def run(
    nodes: Callable[[GraphBuilder, ir.Value], ir.Value], dtype: DType, shape: tuple[int | str, ...], x: Array
) -> Array:
    graph = GraphBuilder(QUANTIZED_OPSET)
    graph.output(nodes(graph, graph.input(TensorSpec("x", dtype, shape))))
    model = ir.to_proto(graph.model()).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_inputs_are_rounded_by_blocks_as_they_are_defined() -> None:
    x = mxfp8_cases()
    found = run(rounded_by_block, DType.FLOAT32, ("batch", "tokens", 96), x.reshape(2, -1, 96)).reshape(x.shape)
    defined = mxfp8_values(*quantize_mxfp8(torch.from_numpy(x))).numpy()
    np.testing.assert_array_equal(found, defined)
    with np.errstate(over="ignore"):  # the largest floats are rounded up
        np.testing.assert_array_equal(found, mxfp8_inputs(x).astype(np.float32))
    assert np.isnan(found).any()
    assert np.isinf(found).any()


def test_every_byte_of_a_scale_is_its_power_of_two() -> None:
    scales = np.arange(256, dtype=np.uint8).reshape(2, 128)
    expected = np.append(2.0 ** np.arange(-127.0, 128), np.nan).reshape(2, 128)
    np.testing.assert_array_equal(run(scale_values, DType.UINT8, (2, 128), scales), expected)
