"""MXFP8 of the OCP microscaling formats: e4m3 codes, and a power of two for each 32 neighbours along the input.

A block's scale is the least power of two by which its largest magnitude is at most 448, `2^ceil(log2(amax / 448))`. So
no number saturates, and dividing by the scale is exact. It is stored as the exponent byte of e8m0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .number_formats import MX_BLOCK
from .rounding import round_e4m3

_INFINITY_BITS = 0x7F800000
_NAN_BITS = 0x7FC00000
_LEAST_BITS = 0x00400000
"""Of 2^-127, which no normal number of fp32 is."""
NAN_SCALE = 255
"""The byte of a scale that is NaN: that of a block with an infinity or a NaN."""
_SMALLEST_INVERSE = 253
"""Byte of the largest scale whose reciprocal is a normal number."""


def block_scales(x: Tensor) -> Tensor:
    """The scale of each block of `x` fp32 [..., in], as e8m0 bytes uint8 [..., in / 32].

    A block with an infinity or a NaN has the scale NaN. A block below 448 * 2^-127, zeros too, has the least, 2^-127.
    """
    blocks = _blocks(x)
    # As integers magnitudes keep their order, and infinities and NaN are above all numbers.
    largest = blocks.contiguous().view(torch.int32).bitwise_and(0x7FFFFFFF).amax(-1)
    # 448 is 1.75 * 2^8: the sum carries into the exponent where the mantissa is above 1.75.
    exponents = ((largest + 0x1FFFFF) >> 23) - 8
    return torch.where(largest >= _INFINITY_BITS, NAN_SCALE, exponents.clamp(min=0)).to(torch.uint8)


def quantize_mxfp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes float8_e4m3fn [..., in] and scales uint8 [..., in / 32] of `x` [..., in].

    Codes are `x / scale`, rounded to the nearest, ties to even. Where the scale is NaN they are `x * 2^-126`.
    """
    scales = block_scales(x)
    inverse = scale_values(254 - scales.clamp(max=_SMALLEST_INVERSE))
    blocks = _blocks(x)
    return round_e4m3(blocks * inverse[..., None]).flatten(-2), scales


def mxfp8_values(codes: Tensor, scales: Tensor) -> Tensor:
    """What codes float8_e4m3fn [..., in] with scales uint8 [..., in / 32] stand for, fp32.

    bfloat16 holds these numbers exactly, unless they are below its least normal number.
    """
    blocks = _blocks(codes)
    return (blocks * scale_values(scales)[..., None]).flatten(-2)


def _blocks(x: Tensor) -> Tensor:
    """fp32 [..., in / 32, 32]"""
    return x.to(torch.float32).reshape(*x.shape[:-1], -1, MX_BLOCK)


def scale_values(scales: Tensor) -> Tensor:
    """The powers of two of e8m0 bytes, fp32."""
    # By their bits, not by a table: a copy of one from the host could not be part of a CUDA graph.
    normal = scales.to(torch.int32) << 23
    denormal = torch.where(scales == 0, _LEAST_BITS, normal)
    return torch.where(scales == NAN_SCALE, _NAN_BITS, denormal).view(torch.float32)


def scale_words(scales: Tensor) -> Tensor:
    """Scales as the operators take them: int32 [in / 128, ...] of bytes uint8 [..., in / 32].

    Four neighbours of a row are a word, the first in its low bits. Words of one place in all rows lie side by side.
    """
    words = scales.contiguous().view(torch.int32)
    return words.movedim(-1, 0).contiguous()


def scales_of_words(words: Tensor) -> Tensor:
    """The bytes uint8 [..., in / 32] of words int32 [in / 128, ...]."""
    # A copy: `contiguous` would leave the stride of a single word as it is.
    return words.movedim(0, -1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
