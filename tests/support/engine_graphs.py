"""Evaluating an engine's graph with ONNX's own reference evaluator, in fp32 whatever type it computes in.

Only what is quantised stays rounded, so that the outcome can be held against a model in fp32 closely.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from sala_export.checkpoint.config import SalaConfig
from sala_export.model.rope import inv_freq_tensor, rope_cos_sin
from sala_export.model.signature import Signature, cache_sizes

from .graph_runner import InfLLMv2Attention, LightningAttention
from .scaled_operators import OPERATORS

_HALVES = (TensorProto.BFLOAT16, TensorProto.FLOAT16)


def evaluate(
    graph: Path, config: SalaConfig, step: Signature, weights: dict[str, np.ndarray], ids: Tensor, rows: Sequence[int]
) -> dict[str, Tensor]:
    """Outputs of one step from empty caches with `ids` [B, T], by name: logits [R, V] of `rows` of the B T tokens."""
    model = onnx.load(graph)
    _widen(model)
    batch, tokens = ids.shape
    lengths = np.zeros(batch, np.int32)
    positions = torch.arange(tokens).expand(batch, tokens)
    sizes = cache_sizes(config, tokens, batch)
    feeds = {
        "input_ids": ids.numpy(),
        "past_length": lengths,
        "context_length": lengths + tokens,
        "rope_cos_sin": rope_cos_sin(positions, inv_freq_tensor(config.rope_theta, config.head_dim)).numpy(),
        "logit_rows": np.array(rows, np.int32),
        **{entry.past.name: np.zeros(entry.past.bound(sizes), np.float32) for entry in step.caches},
        **{name: _wide(array) for name, array in weights.items()},
    }
    assert feeds.keys() == {value.name for value in model.graph.input}
    evaluator = ReferenceEvaluator(
        model, new_ops=[LightningAttention, InfLLMv2Attention, FP4DynamicQuantize, *OPERATORS]
    )
    outputs = evaluator.run(None, feeds)
    return {name: torch.from_numpy(value) for name, value in zip(evaluator.output_names, outputs, strict=True)}


class FP4DynamicQuantize(OpRun):
    """TensorRT's operator, from its description: scales `max |x| / 6 / factor` of blocks of 16, and e2m1 numbers.

    Scales above 448 become 448, as in all of TensorRT's conversions to e4m3.
    """

    op_domain = "trt"

    def _run(self, x, factor, axis=None, block_size=None, scale_type=None):
        assert (axis, block_size, scale_type) == (-1, 16, TensorProto.FLOAT8E4M3FN)
        blocks = x.reshape(*x.shape[:-1], -1, 16)
        scale = (np.abs(blocks).max(-1) / 6 / factor).clip(max=448).astype(ml_dtypes.float8_e4m3fn)
        wide = (scale.astype(np.float32) * factor)[..., None]
        ratio = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide > 0)
        return ratio.clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).reshape(x.shape), scale


# The evaluator finds operators by the names of classes.
FP4DynamicQuantize.__name__ = "TRT_FP4DynamicQuantize"


def _widen(model: onnx.ModelProto) -> None:
    """Put fp32 in the place of every 16-bit type."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type in _HALVES:
            tensor.CopyFrom(numpy_helper.from_array(_wide(numpy_helper.to_array(tensor)), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "output_dtype") and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array
