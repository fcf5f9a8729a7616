"""The unit of the residual stream, without torch; docs/model.md has the account of every tensor of a float16 model.

Only norms read the residual stream, and `RMSNorm(c h; c^2 eps) = RMSNorm(h; eps)`. So a float16 model carries `c h`
instead of `h`, with c = `FLOAT16_STREAM_SCALE`, and its MLP multiplies `silu(gate) * up` by c before that leaves fp32,
so that `down_proj` gives its rows in the stream's unit. A power of two changes no bit of a mantissa. In every other
type c is 1 and nothing changes, not even the exported graph.
"""

from __future__ import annotations

from ..specs import DType

FLOAT16_STREAM_SCALE = 2.0**-6
"""Residual stream, MLP products and MLP outputs hold up to 65504 / c = 4.2 million.

Not smaller, because what falls below 2^-14 is subnormal, rounded to a multiple of 2^-24: to 2^-25 / c = 2^-19 at worst
in the model's own unit. Against rows whose root mean square is r that is an error of 2^-19 / r, no more than float16's
rounding of their ordinary elements (2^-11) as long as r >= 2^-8. Rows of the stream begin at `scale_emb` times the
embedding, which is of order 1, and grow.
"""


def stream_unit(dtype: DType) -> float:
    """The factor c on the residual stream of a model with activations of type `dtype`."""
    return FLOAT16_STREAM_SCALE if dtype is DType.FLOAT16 else 1.0
