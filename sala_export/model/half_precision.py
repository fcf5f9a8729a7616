"""What keeps a float16 model inside float16's range, 65504; docs/model.md has the account of every tensor.

Only norms read the residual stream, and `RMSNorm(c h; c^2 eps) = RMSNorm(h; eps)`. So a float16 model carries `c h`
instead of `h`, with c = `FLOAT16_STREAM_SCALE`, and its MLP multiplies `silu(gate) * up` by c before that leaves fp32,
so that `down_proj` gives its rows in the stream's unit. A power of two changes no bit of a mantissa. In every other
type c is 1 and nothing changes, not even the exported graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FLOAT16_STREAM_SCALE = 2.0**-6
"""Residual stream, MLP products and MLP outputs hold up to 65504 / c = 4.2 million.

Not smaller, because what falls below 2^-14 is subnormal, rounded to a multiple of 2^-24: to 2^-25 / c = 2^-19 at worst
in the model's own unit. Against rows whose root mean square is r that is an error of 2^-19 / r, no more than float16's
rounding of their ordinary elements (2^-11) as long as r >= 2^-8. Rows of the stream begin at `scale_emb` times the
embedding, which is of order 1, and grow.
"""


def stream_scale(dtype: torch.dtype) -> float:
    """The factor c on the residual stream of a model with activations of type `dtype`."""
    return FLOAT16_STREAM_SCALE if dtype is torch.float16 else 1.0


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in x's type, the sums in fp32.

    Sums of a float16 product are otherwise TensorRT's to choose, and GeForce cards sum twice as fast in float16. An
    exported graph asks for fp32 by stating the product in fp32 between casts, which TensorRT takes back into a product
    of float16 operands. Eager mode sums in fp32 anyway.
    """
    if x.dtype is torch.float16 and torch.compiler.is_exporting():
        return functional.linear(x.to(torch.float32), weight.to(torch.float32)).to(x.dtype)
    return functional.linear(x, weight)


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, in float16 times c and computed in fp32, since a product of two float16 numbers overflows."""
    if gate.dtype is not torch.float16:
        return functional.silu(gate) * up
    wide = functional.silu(gate.to(torch.float32)) * up.to(torch.float32)
    return (wide * FLOAT16_STREAM_SCALE).to(gate.dtype)
