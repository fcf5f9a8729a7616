"""Chooses static scales of activations from the inputs that calibration saw.

fp8 and NVFP4 take the largest magnitude: their numbers are floating, so a wide range costs them next to nothing. int8
has 255 even steps, so the range decides how fine they are, and it takes the one with the least squared error, **among
those where no token loses more than a tenth of itself** to clipping. Without that condition clipping would remove rare
tokens whose input is one large number, and recall depends on those (docs/calibration.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoint.quantization import SCHEMES
from ..model.emulation import fake_quantize
from ..numerics.weights import largest_magnitude, nvfp4_global_scale, per_tensor_scale
from ..specs import Precision

_CLIPS = tuple(1 - i / 20 for i in range(15))
"""Parts of the largest magnitude that are tried as int8's range: 1 to 0.3."""
_LARGEST_LOSS = 0.1
"""Norm of what clipping takes from a row, over the norm of the row."""
_ROWS = 1024
"""Rows that the squared error is taken on, evenly spaced."""


def input_scale(x: Tensor, precision: Precision, *, calibrated: bool) -> dict[str, Tensor]:
    """Make the tensors that quantise the input of a projection, which calibration saw as `x` fp32 [N, in].

    Args: `calibrated`: choose int8's range. Otherwise it is the largest magnitude.
    """
    if SCHEMES[precision].input_activations is None:
        return {}
    largest = largest_magnitude(x)
    match precision:
        case Precision.NVFP4:
            return {"input_global_scale": nvfp4_global_scale(largest)}
        case Precision.INT8 if calibrated:
            return {"input_scale": per_tensor_scale(largest * _least_error(x, largest), precision)}
        case _:
            return {"input_scale": per_tensor_scale(largest, precision)}


def _least_error(x: Tensor, largest: float) -> float:
    """The part of the largest magnitude to take as the range."""
    some, norms = x[:: max(1, len(x) // _ROWS)], x.norm(dim=-1)
    best, least = 1.0, torch.inf
    for clip in _CLIPS:
        lost = (x.abs() - clip * largest).clamp_(min=0.0).norm(dim=-1)
        if bool((lost > _LARGEST_LOSS * norms).any()):
            break
        rounded = fake_quantize(some, Precision.INT8, per_tensor_scale(clip * largest, Precision.INT8))
        error = float((rounded - some).square().sum(dtype=torch.float64))
        if error < least:
            best, least = clip, error
    return best
