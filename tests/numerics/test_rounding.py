"""Rounding to number formats, against ml_dtypes and against tables."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch

from sala_export.numerics.number_formats import E2M1_MAX, E2M1_VALUES, E4M3_MAX
from sala_export.numerics.rounding import round_e2m1, round_e4m3, round_int4, round_int8


def samples(limit: float) -> torch.Tensor:
    """Numbers of all sizes up to `limit`, signed."""
    random = torch.Generator().manual_seed(0)
    exponents = torch.randint(-14, 1, (4000,), generator=random)
    return (torch.rand(4000, generator=random) * 2 - 1) * limit * torch.exp2(exponents.to(torch.float32))


def test_e4m3_rounds_as_ml_dtypes() -> None:
    x = samples(E4M3_MAX)
    expected = x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(round_e4m3(x).to(torch.float32).numpy(), expected)


def test_e4m3_ties_go_to_even_and_all_numbers_stay() -> None:
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    assert torch.equal(round_e4m3(numbers).to(torch.float32), numbers)
    middle = (numbers[:-1] + numbers[1:]) / 2
    even = torch.where(torch.arange(126) % 2 == 0, numbers[:-1], numbers[1:])
    assert torch.equal(round_e4m3(middle).to(torch.float32), even)


def test_e2m1_rounds_as_ml_dtypes() -> None:
    x = samples(E2M1_MAX)
    expected = x.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(round_e2m1(x).numpy(), expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_e2m1_ties_go_to_the_even_code(sign: float) -> None:
    pairs = list(itertools.pairwise(E2M1_VALUES))
    middle = torch.tensor([sign * (low + high) / 2 for low, high in pairs])
    even = [low if code % 2 == 0 else high for code, (low, high) in enumerate(pairs)]
    assert (round_e2m1(middle) * sign).tolist() == even
    assert (round_e2m1(torch.tensor(E2M1_VALUES) * sign) * sign).tolist() == list(E2M1_VALUES)


def test_numbers_out_of_range_saturate() -> None:
    x = torch.tensor([1e30, -1e30])
    assert round_e4m3(x).to(torch.float32).tolist() == [448.0, -448.0]
    assert round_e2m1(x).tolist() == [6.0, -6.0]
    assert round_int8(x).tolist() == [127.0, -128.0]
    assert round_int4(x).tolist() == [7.0, -8.0]


def test_integers_round_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, 126.5])
    assert round_int8(x).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, 2.0, 126.0]
