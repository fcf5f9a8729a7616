"""RoPE tables that round as the reference does.

The reference forms `angle = float32(position) * inv_freq` in fp32 and takes cos and sin of that rounded product. At a
million positions the product is off the exact angle by up to 3e-2 in cos, and models were trained with the rounded one:
so the product is rounded here too, and cos and sin of it are then accurate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoint import rope_table


def inv_freq_tensor(theta: float, head_dim: int) -> Tensor:
    """The table of `rope_table.inverse_frequencies`, fp32 [head_dim / 2]."""
    return torch.from_numpy(rope_table.inverse_frequencies(theta, head_dim))


def rope_cos_sin(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rows of the operator input `rope_cos_sin` for integer positions [...]: fp32 [..., head_dim].

    The first half holds cosines, the second sines, of `float32(position) * inv_freq`.
    """
    angle = positions.to(torch.float32)[..., None] * inv_freq
    exact = angle.to(torch.float64)
    return torch.cat((exact.cos(), exact.sin()), dim=-1).to(torch.float32)
