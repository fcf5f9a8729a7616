"""The frequencies of RoPE, which bundles carry and every runtime starts from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def inverse_frequencies(theta: float, head_dim: int) -> NDArray[np.float32]:
    """`1 / theta^(2 i / head_dim)`, fp32 [head_dim / 2].

    The power is taken in fp64 and rounded to fp32 before the division in fp32: an fp32 power differs between libraries
    in some entries, this form equals torch's table on the CPU for head_dim 32, 64 and 128.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return np.float32(1) / np.power(np.float64(theta), exponent).astype(np.float32)
