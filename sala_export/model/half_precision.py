"""What keeps a float16 model inside float16's range, 65504, in torch; `stream_unit.py` says how."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..specs import DType
from .stream_unit import stream_unit


def stream_scale(dtype: torch.dtype) -> float:
    """The factor c on the residual stream of a model with activations of type `dtype`."""
    return stream_unit(DType.FLOAT16) if dtype is torch.float16 else 1.0


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, in float16 times c and computed in fp32, since a product of two float16 numbers overflows."""
    if gate.dtype is not torch.float16:
        return functional.silu(gate) * up
    wide = functional.silu(gate.to(torch.float32)) * up.to(torch.float32)
    return (wide * stream_scale(gate.dtype)).to(gate.dtype)
