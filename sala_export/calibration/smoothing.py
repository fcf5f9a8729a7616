"""Scales per input channel that make a site easier to quantise: SmoothQuant's for int8 and NVFP4, AWQ's for int4.

`x W^T = (x / s) (W s)^T`. SmoothQuant (arXiv 2211.10438) moves outliers of activations into weights where both are
quantised to one range each. AWQ (arXiv 2306.00978) enlarges the weights of channels that carry the most, so that
rounding within a group hurts them less. Both have one exponent, which is chosen per site by the predicted error. Scales
are powers of two, so that folding them into bf16 weights rounds nothing: norms, gates and all projections that are not
quantised compute what they did, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..numerics.number_formats import INT8_MAX
from ..numerics.weights import INT4_GROUP, INT4_RANGE, NVFP4_GROUP, row_blocks
from .sites import Site, across_shared, powers_of_two

_EXPONENTS = tuple(i / 20 for i in range(21))
_ROWS = 512
"""Rows of the inputs that stand for all where each is looked at, evenly spaced."""
_LEAST_COLUMN = 2.0**-6
"""Of the largest column: one that is smaller still is not enlarged further for it."""
_LEAST = 1e-5
"""Of the largest channel: below it a channel is taken for unused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """The scales that were chosen for a site."""

    exponent: float
    scale: Tensor
    """fp32 [in], powers of two."""


def smoothquant_scale(site: Site, x: Tensor, weights: Mapping[str, Tensor], head_dim: int) -> Smoothing:
    """Choose scales for int8. `x` is fp32 [N, in], weights are fp32 [out, in] by module.

    s = max|x|^a / max|W|^(1-a) per channel. Rounding leaves steps^2 / 12 of variance per element, so the outputs are
    off by

        N (dx^2 / 12) sum_j (s_j^2 |W_j|^2)  +  out (dw^2 / 12) sum_j |x_j / s_j|^2

    with dx, dw the steps of the two tensors; the exponent that makes this least is taken, and none (s = 1) if it is.
    """
    range_x = x.abs().amax(0)
    largest_x = _spread(across_shared(site, range_x, head_dim))
    square_x = x.square().sum(0)
    parts = [weights[name] for name in site.projections]
    largest_w = _positive(across_shared(site, torch.stack([part.abs().amax(0) for part in parts]).amax(0), head_dim))
    square_w = torch.stack([part.square().sum(0) for part in parts]).sum(0)
    outputs = sum(part.shape[0] for part in parts)

    def error(scale: Tensor) -> float:
        step_x = (range_x / scale).max() / INT8_MAX
        step_w = (largest_w * scale).max() / INT8_MAX
        from_x = len(x) * step_x**2 * (scale.square() * square_w).sum()
        from_w = outputs * step_w**2 * (square_x / scale.square()).sum()
        return float(from_x + from_w)

    candidates = _smoothquant_candidates(largest_x, largest_w)
    if weights[site.source].ndim > 1:
        # A projection as source has one range of its own, which no row may leave.
        candidates = [replace(each, scale=each.scale.clamp(min=1.0)) for each in candidates]
    return _least(candidates, error)


def nvfp4_scale(site: Site, x: Tensor, weights: Mapping[str, Tensor], head_dim: int) -> Smoothing:
    """Choose scales for NVFP4. `x` is fp32 [N, in], weights are fp32 [out, in] by module.

    SmoothQuant's scales again, but rounding leaves an error in proportion to the largest magnitude of each 16 numbers:
    with A_g the largest of a group of a row of x / s, squared and summed over rows, and B_g the same of W s,

        sum_g ( A_g sum_(j in g) s_j^2 |W_j|^2  +  B_g sum_(j in g) |x_j / s_j|^2 )
    """
    square_x = x.square().sum(0)
    some = x[:: max(1, len(x) // _ROWS)].abs()
    parts = [weights[name].abs() for name in site.projections]
    largest_x = _spread(across_shared(site, x.abs().amax(0), head_dim))
    largest_w = _positive(across_shared(site, torch.stack([part.amax(0) for part in parts]).amax(0), head_dim))
    square_w = torch.stack([part.square().sum(0) for part in parts]).sum(0)

    def error(scale: Tensor) -> float:
        from_x = _group_squares(some, 1 / scale, NVFP4_GROUP) * (len(x) / len(some))
        from_w = torch.stack([_group_squares(part, scale, NVFP4_GROUP) for part in parts]).sum(0)
        of_w = (scale.square() * square_w).view(-1, NVFP4_GROUP).sum(-1)
        of_x = (square_x / scale.square()).view(-1, NVFP4_GROUP).sum(-1)
        return float((from_x * of_w + from_w * of_x).sum())

    return _least(_smoothquant_candidates(largest_x, largest_w)[::2], error)


def awq_scale(site: Site, x: Tensor, weights: Mapping[str, Tensor], head_dim: int) -> Smoothing:
    """Choose scales for int4. `x` is fp32 [N, in], weights are fp32 [out, in] by module.

    s = rms(x)^a per channel, for the exponent with the least sum over groups of

        (step_g^2 / 12) sum_(j in g) |x_j / s_j|^2,    step_g = max_(j in g) |W_j s_j| / 7.5

    which is what rounding leaves in the outputs if its errors are independent of each other.
    """
    square_x = x.square().sum(0)
    rms = _spread(across_shared(site, (square_x / len(x)).sqrt(), head_dim))
    parts = [weights[name].abs() for name in site.projections]

    def error(scale: Tensor) -> float:
        inputs = (square_x / scale.square()).view(-1, INT4_GROUP).sum(-1)
        squares = torch.stack([_group_squares(part, scale, INT4_GROUP) for part in parts]).sum(0)
        return float((squares * inputs).sum()) / INT4_RANGE**2

    candidates = [_smoothing(exponent, rms**exponent) for exponent in _EXPONENTS[2::2]]
    return _least(candidates, error)


def _smoothquant_candidates(largest_x: Tensor, largest_w: Tensor) -> list[Smoothing]:
    return [_smoothing(each, largest_x**each / largest_w ** (1 - each)) for each in _EXPONENTS]


def _smoothing(exponent: float, scale: Tensor) -> Smoothing:
    """Divided by the geometric mean, so that weights keep their size, and rounded to powers of two."""
    return Smoothing(exponent=exponent, scale=powers_of_two(scale / scale.log().mean().exp()))


def _least(candidates: list[Smoothing], error: Callable[[Tensor], float]) -> Smoothing:
    """The candidate of the least error, or none at all if that has less."""
    best = Smoothing(exponent=0.0, scale=torch.ones_like(candidates[0].scale))
    least = error(best.scale)
    for candidate in candidates:
        if (found := error(candidate.scale)) < least:
            best, least = candidate, found
    return best


def _group_squares(magnitudes: Tensor, scale: Tensor, group: int) -> Tensor:
    """Square of the largest of each group of [rows, in] times [in], summed over rows: [in / group]."""
    blocks = row_blocks(magnitudes)
    return torch.stack([(some * scale).view(len(some), -1, group).amax(-1).square().sum(0) for some in blocks]).sum(0)


def _spread(largest: Tensor) -> Tensor:
    """Channels that are quieter than half of those in use raised to that half; all ones if none is used.

    Calibration may have missed what makes a channel loud. A scale made to its silence would multiply it out of range
    when it speaks: so only what stands out is divided, and nothing is made larger.
    """
    used = largest[largest > float(largest.max()) * _LEAST]
    return largest.clamp(min=float(used.median())) if len(used) else torch.ones_like(largest)


def _positive(largest: Tensor) -> Tensor:
    """Columns of weights, which are known, raised only as far as a division needs."""
    top = float(largest.max())
    return largest.clamp(min=top * _LEAST_COLUMN) if top > 0 else torch.ones_like(largest)
