"""How tests compare floating-point results."""

from __future__ import annotations

from torch import Tensor

FLOAT32_TOLERANCE = 1e-5
"""Of the largest value: some ten fp32 roundings of sums over a few hundred terms."""


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """Equal shapes, no infinity or NaN, and every error within `tolerance` of the largest expected value."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    if expected.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        largest = expected.double().abs().max().item()
        assert error <= tolerance * largest, f"error {error:.3g} at largest value {largest:.3g}"
