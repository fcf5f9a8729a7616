"""RMSNormBlockQuantize in plain PyTorch: the truth that all else is compared with. Equations: README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.block_scales import quantize_mxfp8, scale_words


def rms_norm_block_quantize(x: Tensor, weight: Tensor, *, columns: int, eps: float) -> tuple[Tensor, Tensor]:
    """Outputs `(codes, scales)` as in schema.py."""
    wide = x.to(torch.promote_types(torch.float32, x.dtype))
    inverse = torch.rsqrt(wide.square().sum(-1, keepdim=True) / columns + eps)
    codes, scales = quantize_mxfp8((wide * inverse).to(x.dtype) * weight)
    return codes, scale_words(scales)
