"""BlockQuantize in plain PyTorch: the truth that every other implementation is compared with. Equations: README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.block_scales import quantize_mxfp8, scale_words


def block_quantize(x: Tensor, *, columns: int, gated: int) -> tuple[Tensor, Tensor]:
    """Outputs `(codes, scales)` as in schema.py."""
    if gated:
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        gate, up = wide[..., :columns], wide[..., columns:]
        x = (gate * torch.sigmoid(gate) * up).to(x.dtype)
    codes, scales = quantize_mxfp8(x)
    return codes, scale_words(scales)
