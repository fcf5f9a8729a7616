"""Rounding to the number formats of quantised products: the nearest value of the format, ties to even.

What lies beyond the largest value saturates. Inputs are fp32 and finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .number_formats import E2M1_MAX, E4M3_MAX, INT4_MAX, INT8_MAX


def round_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 number, as float8_e4m3fn."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def round_e2m1(x: Tensor) -> Tensor:
    """The nearest e2m1 number, as fp32.

    Neighbours are 0.5 apart below 2, 1 apart below 4 and 2 apart above, and a multiple of the step is even in the
    mantissa where the multiplier is even: so rounding the multiplier to even rounds the number to even.
    """
    magnitude = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
    return torch.copysign(torch.round(magnitude / step) * step, x)


def round_int8(x: Tensor) -> Tensor:
    """The nearest integer in [-128, 127], as fp32."""
    return torch.round(x).clamp_(-INT8_MAX - 1, INT8_MAX)


def round_int4(x: Tensor) -> Tensor:
    """The nearest integer in [-8, 7], as fp32."""
    return torch.round(x).clamp_(-INT4_MAX - 1, INT4_MAX)
