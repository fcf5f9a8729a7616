"""Scales per channel: they change nothing before anything is rounded, and are chosen where they help."""

from __future__ import annotations

import pytest
import torch
from support.checkpoints import tiny_checkpoint
from torch import Tensor

from sala_export.calibration.sites import Site, fold, layer_sites, powers_of_two
from sala_export.calibration.smoothing import awq_scale, nvfp4_scale, smoothquant_scale
from sala_export.checkpoint.keymap import layer_weights
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.emulation import fake_quantize
from sala_export.model.layer_run import LayerRun, layer_prefix, make_layer
from sala_export.numerics.weights import (
    dequantize,
    int4_scale,
    nvfp4_global_scale,
    per_tensor_scale,
    quantize_int4,
    quantize_nvfp4,
    quantize_per_tensor,
)
from sala_export.specs import Precision

SITE = Site(projections=("a", "b"), source="norm")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("include_gates", [False, True])
def test_folded_scales_leave_the_function_of_a_layer_bit_for_bit(layer: int, include_gates: bool) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2))
    config, prefix = checkpoint.config, layer_prefix(layer)
    names = [weight.name for weight in layer_weights(config, layer)]
    weights = {name.removeprefix(prefix): checkpoint.tensor(name).to(torch.float32, copy=True) for name in names}
    random = torch.Generator().manual_seed(layer)
    rows = torch.randn(80, config.hidden_size, generator=random)
    before = LayerRun(config).run(layer, make_layer(config, layer, weights), rows)
    unchanged = {name: tensor.clone() for name, tensor in weights.items()}
    modules = {name.removesuffix(".weight"): tensor for name, tensor in weights.items()}
    for site in layer_sites(config, layer, include_gates=include_gates):
        inputs = modules[site.projections[0]].shape[1]
        scale = torch.exp2(torch.randint(-4, 5, (inputs,), generator=random).to(torch.float32))
        if site.shared_by > 1:
            scale = scale.view(-1, site.shared_by, config.head_dim)[:, :1].expand(-1, site.shared_by, -1).flatten()
        fold(modules, site, scale, config.head_dim)
    changed = [name for name in weights if not torch.equal(weights[name], unchanged[name])]
    assert len(changed) == (11 if layer else 10)  # all but q_norm and k_norm
    assert all(torch.equal(tensor.to(torch.bfloat16).to(torch.float32), tensor) for tensor in weights.values())
    after = LayerRun(config).run(layer, make_layer(config, layer, weights), rows)
    # Sums have the same terms; only underflow could tell them apart.
    assert torch.equal(after, before)


def test_powers_of_two_are_the_nearest() -> None:
    assert powers_of_two(torch.tensor([1.0, 1.4, 1.5, 0.3, 100.0])).tolist() == [1.0, 1.0, 2.0, 0.25, 128.0]


def inputs_and_weights() -> tuple[Tensor, dict[str, Tensor]]:
    """A few channels stand out of the inputs; the weights that read them are smaller, not by as much."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 256, generator=random)
    parts = {name: torch.randn(96, 256, generator=random) / 16 for name in SITE.projections}
    outliers = [3, 77, 200]
    x[:, outliers] *= 24.0
    for part in parts.values():
        part[:, outliers] /= 8.0
    return x, {**parts, "norm": torch.ones(256)}


def rounded(x: Tensor, weight: Tensor, precision: Precision) -> Tensor:
    """The product of rounded operands, scales from these operands."""
    if precision is Precision.INT4:
        tensors = quantize_int4(weight, int4_scale(weight, torch.ones(weight.shape[1])))
        return x @ dequantize(precision, tensors["weight_packed"], tensors["weight_scale"]).t()
    if precision is Precision.NVFP4:
        tensors = quantize_nvfp4(weight, nvfp4_global_scale(float(weight.abs().max())))
        global_scale = 1 / float(tensors["weight_global_scale"])
        wide = dequantize(precision, tensors["weight_packed"], tensors["weight_scale"], global_scale)
        return fake_quantize(x, precision, 1 / nvfp4_global_scale(float(x.abs().max()))) @ wide.t()
    tensors = quantize_per_tensor(weight, per_tensor_scale(float(weight.abs().max()), precision), precision)
    wide = dequantize(precision, tensors["weight"], tensors["weight_scale"])
    return fake_quantize(x, precision, per_tensor_scale(float(x.abs().max()), precision)) @ wide.t()


@pytest.mark.parametrize(
    ("precision", "choose", "gain"),
    [
        (Precision.INT8, smoothquant_scale, 4.0),
        (Precision.INT4, awq_scale, 1.7),
        (Precision.NVFP4, nvfp4_scale, 1.5),
    ],
)
def test_chosen_scales_lessen_the_error_where_channels_stand_out(precision: Precision, choose, gain: float) -> None:
    x, weights = inputs_and_weights()
    found = choose(SITE, x, weights, 64)
    assert torch.equal(found.scale, powers_of_two(found.scale))
    exact = x @ weights["a"].t()
    plain = float((rounded(x, weights["a"], precision) - exact).norm())
    smooth = float((rounded(x / found.scale, weights["a"] * found.scale, precision) - exact).norm())
    assert smooth < plain / gain


@pytest.mark.parametrize("choose", [smoothquant_scale, awq_scale, nvfp4_scale])
def test_unused_inputs_are_no_trouble(choose) -> None:
    _, weights = inputs_and_weights()
    found = choose(SITE, torch.zeros(16, 256), weights, 64)
    assert bool(torch.isfinite(found.scale).all())


def test_no_row_of_a_projection_grows_for_int8() -> None:
    x, weights = inputs_and_weights()
    site = Site(projections=("a",), source="b")
    scale = smoothquant_scale(site, x, {"a": weights["a"], "b": torch.ones(256, 8)}, 64).scale
    assert float(scale.min()) >= 1.0
    assert float(scale.max()) > 1.0
