"""Block-scaled products in plain PyTorch: the truth that every other implementation is compared with.

B batch, T tokens, K inputs, N outputs. Equations: README.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_scaled_linear(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    """`y` as in schema.py, float32 [B, T, N]. The sums are of exact products, in float32."""
    return decoded(x, x_scales) @ decoded(weight, weight_scales).T


def decoded(codes: Tensor, words: Tensor) -> Tensor:
    """What codes float8_e4m3fn [..., K] with scales int32 [K / 128, ...] stand for, float32 [..., K], exactly.

    A scale byte of 255 makes its 32 numbers NaN.
    """
    # A copy: words of rows of 128 numbers count as contiguous, whatever their stride.
    scales = words.movedim(0, -1).clone(memory_format=torch.contiguous_format).view(torch.float8_e8m0fnu)
    blocks = codes.to(torch.float32).reshape(*scales.shape, 32)
    return (blocks * scales.to(torch.float32)[..., None]).reshape(codes.shape)
