"""Ranges of activations: finer steps for int8 where nothing rare is lost by them."""

from __future__ import annotations

import pytest
import torch

from sala_export.calibration.ranges import input_scale
from sala_export.model.emulation import fake_quantize
from sala_export.specs import Precision


def heavy_tails() -> torch.Tensor:
    """Products of two normal numbers: each row has a few large ones among many."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(200, 4096, generator=random) * torch.randn(200, 4096, generator=random)


def error(x: torch.Tensor, scale: torch.Tensor) -> float:
    return float((fake_quantize(x, Precision.INT8, scale) - x).norm())


def test_int8_clips_where_no_token_loses_much() -> None:
    x = heavy_tails()
    found = input_scale(x, Precision.INT8, calibrated=True)["input_scale"]
    whole = input_scale(x, Precision.INT8, calibrated=False)["input_scale"]
    assert float(whole) == pytest.approx(float(x.abs().max()) / 127)
    assert error(x, found) < 0.85 * error(x, whole)


def test_int8_keeps_a_rare_token_that_is_one_large_number() -> None:
    x = heavy_tails()
    x[7] = 0.0
    x[7, 100] = 2 * float(x.abs().max())
    scale = input_scale(x, Precision.INT8, calibrated=True)["input_scale"]
    assert float(fake_quantize(x, Precision.INT8, scale)[7, 100]) >= 0.9 * float(x[7, 100])


@pytest.mark.parametrize(("precision", "limit"), [(Precision.FP8, 448), (Precision.INT8, 127)])
def test_unused_input_has_a_scale(precision: Precision, limit: int) -> None:
    scale = input_scale(torch.zeros(4, 32), precision, calibrated=True)["input_scale"]
    assert 0 < float(scale) < 1e-20 / limit


def test_floating_formats_take_the_largest() -> None:
    x = heavy_tails()
    largest = float(x.abs().max())
    assert float(input_scale(x, Precision.FP8, calibrated=True)["input_scale"]) == pytest.approx(largest / 448)
    found = input_scale(x, Precision.NVFP4, calibrated=True)["input_global_scale"]
    assert float(found) == pytest.approx(448 * 6 / largest)
    assert input_scale(x, Precision.INT4, calibrated=True) == {}
