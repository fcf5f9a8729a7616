"""Four-bit numbers as compressed-tensors stores them.

int4: eight to an int32, each plus 8, the first in the lowest bits. e2m1: two codes to a byte, the first in the low
half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .number_formats import E2M1_VALUES

_INT4_OFFSET = 8
_PER_WORD = 8


def pack_int4(values: Tensor) -> Tensor:
    """Integers in [-8, 7], [out, in] of any type with `in` a multiple of 8 -> int32 [out, in / 8]."""
    nibbles = (values.to(torch.int32) + _INT4_OFFSET).view(values.shape[0], -1, _PER_WORD)
    words = torch.zeros(nibbles.shape[:2], dtype=torch.int32)
    for position in range(_PER_WORD):
        words |= nibbles[..., position] << (4 * position)
    return words


def unpack_int4(words: Tensor) -> Tensor:
    """int32 [out, in / 8] -> int8 [out, in]."""
    # The bytes of a word, lowest first; tensors lie in memory as they do in the file.
    halves = words.contiguous().view(torch.uint8)
    nibbles = torch.stack((halves & 0xF, halves >> 4), dim=-1)
    return (nibbles.to(torch.int8) - _INT4_OFFSET).flatten(-2)


def pack_e2m1(values: Tensor) -> Tensor:
    """e2m1 numbers in fp32, [out, in] with `in` even -> uint8 [out, in / 2]."""
    # Twice a magnitude is 0, 1, 2, 3, 4, 6, 8 or 12.
    table = torch.zeros(13, dtype=torch.uint8)
    table[[round(2 * value) for value in E2M1_VALUES]] = torch.arange(8, dtype=torch.uint8)
    codes = table[(values.abs() * 2).to(torch.int64)] | (torch.signbit(values).to(torch.uint8) << 3)
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """uint8 [out, in / 2] -> e2m1 numbers in fp32 [out, in]."""
    table = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)], device=packed.device)
    pairs = torch.stack((packed & 0xF, packed >> 4), dim=-1)
    return table[pairs.to(torch.int32)].flatten(-2)
