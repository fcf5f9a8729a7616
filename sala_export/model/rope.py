"""RoPE tables that round as the reference does.

The reference forms `angle = float32(position) * inv_freq` in fp32 and takes cos and sin of that rounded product. At a
million positions the product is off the exact angle by up to 3e-2 in cos, and models were trained with the rounded one:
so the product is rounded here too, and cos and sin of it are then accurate.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequencies(theta: float, head_dim: int) -> Tensor:
    """`1 / theta^(2 i / head_dim)`, fp32 [head_dim / 2].

    The power is taken in fp64 and rounded to fp32 before the division in fp32: an fp32 power differs between libraries
    in some entries, this form equals torch's table on the CPU for head_dim 32, 64 and 128.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return 1.0 / torch.pow(torch.tensor(theta, dtype=torch.float64), exponent).to(torch.float32)


def rope_cos_sin(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rows of the operator input `rope_cos_sin` for integer positions [...]: fp32 [..., head_dim].

    The first half holds cosines, the second sines, of `float32(position) * inv_freq`.
    """
    angle = positions.to(torch.float32)[..., None] * inv_freq
    exact = angle.to(torch.float64)
    return torch.cat((exact.cos(), exact.sin()), dim=-1).to(torch.float32)
