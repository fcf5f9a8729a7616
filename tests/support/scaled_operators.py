"""The block-scaled operators for ONNX's reference evaluator, in numpy: shares no code with those of the project.

They compute in float32 whatever the type of an activation. Scales follow from `frexp`, codes from ml_dtypes.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx.reference.op_run import OpRun


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """e4m3 codes of finite rows [..., in], and words of their scales int32 [in / 128, ...]."""
    blocks = rows.astype(np.float32).reshape(*rows.shape[:-1], -1, 32)
    mantissa, exponent = np.frexp(np.abs(blocks).max(-1))
    # 448 is 0.875 * 2^9.
    power = np.maximum(exponent - np.where(mantissa > 0.875, 8, 9), -127)
    codes = np.ldexp(blocks, -power[..., None]).astype(ml_dtypes.float8_e4m3fn).reshape(rows.shape)
    return codes, np.moveaxis((power + 127).astype(np.uint8).view(np.int32), -1, 0)


def numbers(codes: np.ndarray, words: np.ndarray) -> np.ndarray:
    """What codes [..., in] and words of scales [in / 128, ...] stand for, float32."""
    power = np.ascontiguousarray(np.moveaxis(words, 0, -1)).view(np.uint8).astype(np.int32) - 127
    blocks = codes.astype(np.float32).reshape(*codes.shape[:-1], -1, 32)
    return np.ldexp(blocks, power[..., None]).reshape(codes.shape)


class BlockQuantize(OpRun):
    op_domain = "sala"

    def _run(self, x, columns=None, gated=None, **_):
        gate, up = x[..., :columns], x[..., columns:]
        return quantized(gate / (1 + np.exp(-gate)) * up if gated else x)


class RMSNormBlockQuantize(OpRun):
    op_domain = "sala"

    def _run(self, x, weight, eps=None, **_):
        return quantized(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight)


class BlockScaledLinear(OpRun):
    op_domain = "sala"

    def _run(self, *operands, **_):
        return (_product(*operands),)


class BlockScaledLinearAdd(OpRun):
    op_domain = "sala"

    def _run(self, x, x_scales, weight, weight_scales, stream, factor=None, **_):
        return (stream + np.float32(factor) * _product(x, x_scales, weight, weight_scales),)


def _product(x: np.ndarray, x_scales: np.ndarray, weight: np.ndarray, weight_scales: np.ndarray) -> np.ndarray:
    return numbers(x, x_scales) @ numbers(weight, weight_scales).T


OPERATORS = [BlockQuantize, RMSNormBlockQuantize, BlockScaledLinear, BlockScaledLinearAdd]
