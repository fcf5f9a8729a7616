"""Weights into the tensors of a quantised checkpoint (docs/quantisation.md), and back to the numbers they stand for.

Tensors are named without their module: `weight`, `weight_scale`, ... All arithmetic is fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..specs import Precision
from .block_scales import mxfp8_values
from .number_formats import E2M1_MAX, E4M3_MAX, INT8_MAX
from .packing import pack_e2m1, pack_int4, unpack_e2m1, unpack_int4
from .rounding import round_e2m1, round_e4m3, round_int4, round_int8

INT4_GROUP = 128
"""Weights along the input that share a scale."""
NVFP4_GROUP = 16
"""The same of NVFP4, for weights and activations."""
INT4_RANGE = 7.5
"""A group's largest magnitude over its scale, as compressed-tensors has it: at 7 the step is larger for all weights,
at 8 the largest may be off by a whole step."""

_BLOCK_ELEMENTS = 1 << 18
"""Elements of a block of rows: 1 MiB in fp32, which stays in a processor's cache while it is worked on."""
_SMALLEST = 2.0**-100
"""Stands for the largest magnitude of a tensor of zeros, whose scale would be zero."""


def row_blocks(matrix: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """Blocks of rows of a matrix, one after another. What is made of one fits the memory that the last has left.

    Args: width: cut as a matrix of so many columns and as many rows is.
    """
    return torch.split(matrix, max(1, _BLOCK_ELEMENTS // (width or matrix.shape[1])))


def largest_magnitude(x: Tensor) -> float:
    """The largest magnitude of numbers that are finite."""
    least, most = x.aminmax()
    return max(-float(least), float(most))


def per_tensor_scale(largest: float, precision: Precision) -> Tensor:
    """The fp32 scale [1] by which numbers up to `largest` in magnitude fill the range of fp8 or int8."""
    limit = E4M3_MAX if precision is Precision.FP8 else INT8_MAX
    return torch.tensor([max(largest, _SMALLEST) / limit], dtype=torch.float32)


def nvfp4_global_scale(largest: float) -> Tensor:
    """fp32 [1], as it is stored: what takes the scales of groups of numbers up to `largest` to the range of e4m3."""
    return torch.tensor([E4M3_MAX * E2M1_MAX / max(largest, _SMALLEST)], dtype=torch.float32)


def quantize_per_tensor(weight: Tensor, scale: Tensor, precision: Precision) -> dict[str, Tensor]:
    """fp8 and int8: `weight` fp32 [out, in], `scale` fp32 [1]."""
    steps = weight / scale
    codes = round_e4m3(steps) if precision is Precision.FP8 else round_int8(steps).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}


def int4_scale(weight: Tensor, importance: Tensor, shrinks: tuple[float, ...] = (1.0,)) -> Tensor:
    """Scales of the groups of `weight` fp32 [out, in], as bf16 [out, in / 128].

    Of the largest magnitude times each of `shrinks` the one is taken that gives the least error, each column's square
    weighted by `importance` fp32 [in]: clipping the largest weight of a group may pay for all others.
    """
    return torch.cat([_int4_scale(rows, importance, shrinks) for rows in row_blocks(weight)])


def _int4_scale(rows: Tensor, importance: Tensor, shrinks: tuple[float, ...]) -> Tensor:
    groups = rows.view(rows.shape[0], -1, INT4_GROUP)
    full = groups.abs().amax(-1).clamp(min=_SMALLEST) / INT4_RANGE
    if len(shrinks) == 1:
        return (full * shrinks[0]).to(torch.bfloat16)
    weights = importance.view(1, -1, INT4_GROUP)
    best = full.to(torch.bfloat16)
    least = torch.full_like(full, torch.inf)
    for shrink in shrinks:
        scale = (full * shrink).to(torch.bfloat16)
        wide = scale.to(torch.float32)[..., None]
        error = (round_int4(groups / wide).mul_(wide).sub_(groups).square_() * weights).sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def quantize_int4(weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Round to nearest: `weight` fp32 [out, in], `scale` bf16 [out, in / 128]."""
    packed = []
    for rows, of_rows in zip(row_blocks(weight), row_blocks(scale, weight.shape[1]), strict=True):
        wide = of_rows.to(torch.float32).repeat_interleave(INT4_GROUP, dim=1)
        packed.append(pack_int4(round_int4(rows / wide)))
    return int4_tensors(torch.cat(packed), scale)


def int4_tensors(packed: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The tensors of a weight of packed integers and their scales, bf16 [out, in / 128]."""
    outputs, groups = scale.shape
    shape = torch.tensor([outputs, groups * INT4_GROUP])
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": shape}


def quantize_nvfp4(weight: Tensor, global_scale: Tensor) -> dict[str, Tensor]:
    """`weight` fp32 [out, in], `global_scale` fp32 [1] as it is stored."""
    codes, scale = nvfp4_codes(weight, 1.0 / global_scale)
    return {"weight_packed": pack_e2m1(codes), "weight_scale": scale, "weight_global_scale": global_scale}


def nvfp4_codes(x: Tensor, global_scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """e2m1 numbers in fp32 [..., in] and e4m3 scales [..., in / 16] of `x` fp32 [..., in].

    A group's scale is what takes its largest magnitude to 6, over `global_scale` (the reciprocal of the stored one),
    rounded to e4m3; a group whose scale rounds to zero is zero.
    """
    groups = x.reshape(*x.shape[:-1], -1, NVFP4_GROUP)
    scale = round_e4m3(groups.abs().amax(-1) / (E2M1_MAX * global_scale))
    wide = (scale.to(torch.float32) * global_scale)[..., None]
    steps = torch.where(wide > 0, groups / torch.where(wide > 0, wide, 1.0), 0.0)
    return round_e2m1(steps).flatten(-2), scale


def nvfp4_values(codes: Tensor, scale: Tensor, global_scale: Tensor | float) -> Tensor:
    """What e2m1 numbers [..., in] with e4m3 scales [..., in / 16] stand for, fp32."""
    wide = (scale.to(torch.float32) * global_scale)[..., None]
    return (codes.reshape(*codes.shape[:-1], -1, NVFP4_GROUP) * wide).flatten(-2)


def dequantize(precision: Precision, codes: Tensor, scale: Tensor, global_scale: float = 1.0) -> Tensor:
    """The weight that stored tensors stand for, fp32 [out, in].

    Args: `codes`: `weight` or `weight_packed`; `scale`: `weight_scale`; `global_scale`: in nvfp4 the reciprocal of
    `weight_global_scale`.
    """
    match precision:
        case Precision.INT4:
            groups = unpack_int4(codes).to(torch.float32).view(*scale.shape, -1)
            return (groups * scale.to(torch.float32)[..., None]).flatten(1)
        case Precision.MXFP8:
            return mxfp8_values(codes, scale)
        case Precision.NVFP4:
            return nvfp4_values(unpack_e2m1(codes), scale, global_scale)
        case _:
            # One scale, or one for each output.
            return codes.to(torch.float32) * scale.to(torch.float32).view(-1, 1)
