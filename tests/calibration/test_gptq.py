"""GPTQ: its factor, and that it beats rounding to nearest where inputs are correlated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sala_export.calibration.gptq import gptq, inverse_factor
from sala_export.numerics.weights import dequantize, int4_scale, quantize_int4
from sala_export.specs import Precision


def correlated_inputs(rows: int = 600, columns: int = 256) -> Tensor:
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(rows, 24, generator=random) @ torch.randn(24, columns, generator=random) / 5
    return shared + 0.2 * torch.randn(rows, columns, generator=random)


def weight(rows: int = 40, columns: int = 256) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def output_error(tensors: dict[str, Tensor], x: Tensor) -> float:
    wide = dequantize(Precision.INT4, tensors["weight_packed"], tensors["weight_scale"])
    return float((x @ (wide - weight()).t()).norm() / (x @ weight().t()).norm())


def test_factor_is_that_of_the_inverse() -> None:
    x = correlated_inputs()
    hessian = x.t() @ x
    factor = inverse_factor(hessian.clone())
    assert torch.equal(factor, factor.triu())
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    identity = (factor.t() @ factor).to(torch.float64) @ damped.to(torch.float64)
    torch.testing.assert_close(identity, torch.eye(len(hessian), dtype=torch.float64), rtol=0, atol=2e-3)


def test_hessian_is_left_as_it_was() -> None:
    x = correlated_inputs()
    hessian = x.t() @ x
    before = hessian.clone()
    inverse_factor(hessian)
    assert torch.equal(hessian, before)


def test_gptq_beats_rounding_to_nearest_on_correlated_inputs() -> None:
    x, held_out = correlated_inputs(rows=900).split([600, 300])
    importance = x.square().sum(0)
    nearest = quantize_int4(weight(), int4_scale(weight(), importance))
    found = gptq(weight(), inverse_factor(x.t() @ x), importance, (1.0,))
    assert found["weight_shape"].tolist() == [40, 256]
    assert output_error(found, x) < 0.5 * output_error(nearest, x)
    assert output_error(found, held_out) < 0.6 * output_error(nearest, held_out)


def test_gptq_is_rounding_to_nearest_on_independent_inputs() -> None:
    found = gptq(weight(), inverse_factor(torch.eye(256)), torch.ones(256), (1.0,))
    nearest = quantize_int4(weight(), int4_scale(weight(), torch.ones(256)))
    assert all(torch.equal(found[name], nearest[name]) for name in nearest)


@pytest.mark.parametrize("used", [0, 5])
def test_inputs_that_are_all_but_unused_are_no_trouble(used: int) -> None:
    x = torch.zeros(64, 256)
    x[:, :used] = 1.0
    found = gptq(weight(), inverse_factor(x.t() @ x), x.square().sum(0), (1.0, 0.9))
    assert bool(torch.isfinite(found["weight_scale"].to(torch.float32)).all())
