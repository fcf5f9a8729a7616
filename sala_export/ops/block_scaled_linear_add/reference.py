"""A block-scaled product that is added to the residual stream, in plain PyTorch. Equations: README.md."""

from __future__ import annotations

from torch import Tensor

from ..block_scaled_linear.reference import block_scaled_linear


def block_scaled_linear_add(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, stream: Tensor, *, factor: float
) -> Tensor:
    """`y` as in schema.py, in the type of `stream`: the sum is formed in float32 and rounded once."""
    product = block_scaled_linear(x, x_scales, weight, weight_scales)
    return (stream.to(product.dtype) + factor * product).to(stream.dtype)
