"""The frequencies of RoPE, which bundles carry and every runtime starts from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError


def require_frequencies(theta: float, head_dim: int) -> None:
    """Raise ConfigError unless all frequencies are finite and above 0 in fp32."""
    # They rise or fall from channel to channel, and begin at 1.
    with np.errstate(all="ignore"):
        last = np.float32(1) / np.power(np.float64(theta), (head_dim - 2) / head_dim).astype(np.float32)
    if not 0 < last < np.inf:
        raise ConfigError(f"rope_theta is {theta}: its frequencies are no numbers of fp32, use that of the model")


def inverse_frequencies(theta: float, head_dim: int) -> NDArray[np.float32]:
    """`1 / theta^(2 i / head_dim)`, fp32 [head_dim / 2].

    The power is taken in fp64 and rounded to fp32 before the division in fp32: an fp32 power differs between libraries
    in some entries, this form equals torch's table on the CPU for head_dim 32, 64 and 128.
    Raises: ConfigError as `require_frequencies`.
    """
    require_frequencies(theta, head_dim)
    exponent = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return np.float32(1) / np.power(np.float64(theta), exponent).astype(np.float32)
