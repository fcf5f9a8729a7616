"""The number formats of quantised weights and activations: their largest values, and what their codes stand for.

| format | values | largest |
|---|---|---|
| e4m3 (OCP FP8, finite) | 4 bits of exponent, 3 of mantissa | 448 |
| e2m1 (OCP FP4) | 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives | 6 |
| int8, int4 | integers | 127, 7 |
| e8m0 (OCP microscaling) | powers of two, 2^(byte - 127); byte 255 is NaN | 2^127 |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

E4M3_MAX = 448.0
E2M1_MAX = 6.0
INT8_MAX = 127.0
INT4_MAX = 7.0
MX_BLOCK = 32
"""Numbers along a row that share a scale of e8m0."""
WORD_COLUMNS = 4 * MX_BLOCK
"""Numbers whose scales fill a word of 32 bits."""


def _e4m3_values() -> NDArray[np.float32]:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


E4M3_VALUES = _e4m3_values()
"""The value of every e4m3 number, fp32 [256] by its byte."""

E8M0_VALUES = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.nan).astype(np.float32)
"""The value of every e8m0 number, fp32 [256] by its byte."""

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of e2m1 by their code, which is the low three bits. The fourth bit is the sign."""
