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


def assert_most_rows_close(actual: Tensor, expected: Tensor, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """`assert_close` for more than half of the rows of [rows, columns], and 0.1 for the others.

    It is for models that round their inputs to a few codes. A sum near the middle between two codes may fall to another
    side on another processor, which changes the rows of one prompt. A fault changes those of all.
    """
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    assert len(expected) >= 5
    errors = (actual.double() - expected.double()).abs().amax(-1) / expected.double().abs().max()
    assert errors.median() <= tolerance, f"errors of the rows: {errors.tolist()}"
    assert errors.max() <= 0.1, f"errors of the rows: {errors.tolist()}"
