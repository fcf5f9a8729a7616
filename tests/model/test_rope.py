"""RoPE tables at positions up to two million."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import oracles

from sala_export.errors import ConfigError
from sala_export.model.rope import inv_freq_tensor, rope_cos_sin

POSITIONS = [0, 1, 63, 9_001, 65_535, 524_287, 1_048_575, 1_999_999, 2_097_151]


@pytest.mark.parametrize("dim", [32, 64, 128])
def test_inverse_frequencies_equal_the_float32_table_of_torch(dim: int) -> None:
    """The form in which published RoPE code computes its table, on the CPU."""
    table = 1.0 / (10000.0 ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
    actual = inv_freq_tensor(10000.0, dim)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, table)


@pytest.mark.parametrize("dim", [32, 64, 128])
def test_cos_and_sin_are_those_of_the_rounded_product(dim: int) -> None:
    """Every entry is the C library's double cos or sin of `float32(position) * inv_freq`, rounded once to fp32."""
    inv_freq = inv_freq_tensor(10000.0, dim)
    actual = rope_cos_sin(torch.tensor(POSITIONS), inv_freq)
    assert actual.shape == (len(POSITIONS), dim)
    assert actual.dtype == torch.float32
    # Half a step of fp32 below one, and the error of the doubles.
    bound = 2.0**-25 * (1 + 1e-6)
    for row, position in zip(actual.double().numpy(), POSITIONS, strict=True):
        angles = [float(np.float32(position) * f) for f in inv_freq.numpy()]
        exact = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert np.abs(row - exact).max() <= bound


def test_table_equals_the_oracle_used_by_the_operator_tests() -> None:
    cos, sin = oracles.rope_cos_sin(POSITIONS, 64)
    actual = rope_cos_sin(torch.tensor(POSITIONS, dtype=torch.int32), inv_freq_tensor(10000.0, 64))
    assert np.array_equal(actual.numpy(), np.concatenate((cos, sin), axis=1).astype(np.float32))


def test_unrounded_angle_would_show() -> None:
    """The trap that the rounded product avoids: at half a million the exact angle's cos is off by more than 1e-2."""
    positions = torch.arange(524_000, 524_288)
    exact = positions.double()[:, None] * 10000.0 ** -(torch.arange(0, 128, 2).double() / 128)
    actual = rope_cos_sin(positions, inv_freq_tensor(10000.0, 128))[:, :64]
    assert (actual - exact.cos()).abs().max() > 1e-2


def test_batch_of_positions_gives_a_table_per_row() -> None:
    inv_freq = inv_freq_tensor(10000.0, 32)
    positions = torch.tensor([[0, 1, 2], [7, 8, 9]])
    actual = rope_cos_sin(positions, inv_freq)
    assert actual.shape == (2, 3, 32)
    assert torch.equal(actual[1], rope_cos_sin(torch.tensor([7, 8, 9]), inv_freq))


@pytest.mark.parametrize("theta", [3e307, 5e-324, 1e-40])
def test_frequencies_that_fp32_lacks_are_refused(theta: float, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ConfigError, match=r"rope_theta is .*: its frequencies are no numbers of fp32"):
        inv_freq_tensor(theta, 128)
    assert not recwarn.list
    assert inv_freq_tensor(theta, 2).tolist() == [1.0]
