"""MXFP8 against frexp, and bit for bit against ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sala_export.numerics.block_scales import (
    block_scales,
    mxfp8_values,
    quantize_mxfp8,
    scale_values,
    scale_words,
    scales_of_words,
)
from sala_export.numerics.number_formats import E8M0_VALUES

Floats = NDArray[np.float32]


def expected_byte(largest: np.floating) -> int:
    """448 is 0.875 * 2^9, and frexp's mantissas are below 1."""
    if not np.isfinite(largest):
        return 255
    if largest == 0:
        return 0
    mantissa, exponent = np.frexp(np.float64(largest))
    return max(int(exponent) - 9 + int(mantissa > 0.875) + 127, 0)


def random_blocks() -> Floats:
    """Numbers of all sizes [500, 32]: each block has its own exponent, and its numbers have others below."""
    rng = np.random.default_rng(0)
    exponents = rng.integers(-140, 121, (500, 1)) - rng.integers(0, 12, (500, 32))
    return np.ldexp(rng.uniform(-2, 2, (500, 32)), exponents).astype(np.float32)


def border_blocks() -> Floats:
    """Blocks with one number: those where the scale changes, their neighbours, and what is no normal number."""
    borders = np.ldexp(np.float32(1.75), np.arange(-149, 128)).astype(np.float32)
    tiny = np.float32([0, -0.0, 1e-45, 2.0**-127, 2.0**-126, np.finfo(np.float32).max, 448, -448])
    up, down = np.nextafter(borders, np.float32(np.inf)), np.nextafter(borders, np.float32(0))
    numbers = np.concatenate((borders, up, down, -up, tiny, np.float32([np.inf, -np.inf, np.nan])))
    blocks = np.zeros((len(numbers), 32), np.float32)
    blocks[np.arange(len(numbers)), np.arange(len(numbers)) % 32] = numbers
    return blocks


@pytest.mark.parametrize("blocks", [random_blocks(), border_blocks()], ids=["random", "borders"])
def test_scales_and_codes(blocks: Floats) -> None:
    expected = np.array([expected_byte(row) for row in np.abs(blocks).max(1)], np.uint8)
    codes, scales = quantize_mxfp8(torch.from_numpy(blocks))
    assert np.array_equal(scales[:, 0].numpy(), expected)
    finite = expected < 255
    steps = np.ldexp(blocks[finite].astype(np.float64), 127 - expected[finite, None].astype(int)).astype(np.float32)
    assert np.abs(steps).max() <= 448
    bits = codes.view(torch.uint8).numpy()
    assert np.array_equal(bits[finite], steps.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    # Numbers of a block without a scale stand for nothing.
    assert mxfp8_values(codes, scales)[torch.from_numpy(~finite)].isnan().all()


def test_scale_is_the_least_that_fits() -> None:
    x = torch.from_numpy(random_blocks()).double()
    scales = block_scales(x.float())
    powers, largest = torch.exp2(scales.double() - 127), x.float().double().abs().amax(1, keepdim=True)
    assert (largest <= 448 * powers).all()
    assert ((largest > 224 * powers) | (scales == 0)).all()


def test_numbers_of_every_code_and_scale() -> None:
    codes, every = torch.arange(256, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8)
    expected = every.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(scale_values(every).numpy(), expected, equal_nan=True)
    assert np.array_equal(E8M0_VALUES, expected, equal_nan=True)
    values = mxfp8_values(codes.view(torch.float8_e4m3fn).expand(256, 256), every[:, None].expand(256, 8))
    wide = codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)[None] * expected.astype(np.float64)[:, None]
    with np.errstate(over="ignore"):
        assert np.array_equal(values.numpy(), wide.astype(np.float32), equal_nan=True)
    normal = values[values.abs() >= 2.0**-126]
    assert torch.equal(normal.bfloat16().float(), normal)


def test_words_hold_four_neighbours_of_a_row() -> None:
    scales = torch.randint(0, 256, (3, 5, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    words = scale_words(scales)
    assert (words.dtype, words.shape, words.is_contiguous()) == (torch.int32, (3, 3, 5), True)
    for place in range(12):
        bits = words[place // 4].to(torch.int64) >> 8 * (place % 4) & 255
        assert torch.equal(bits, scales[..., place].to(torch.int64))
    assert torch.equal(scales_of_words(words), scales)
