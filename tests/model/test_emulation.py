"""Emulated products, against a reference that shares no code with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.calibration import quantized_tiny
from support.checkpoints import tiny_checkpoint
from support.quantized_reference import quantized_model, round_mxfp8

from sala_export import SalaForCausalLM
from sala_export.checkpoint.quantization import SCHEMES
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.emulation import EmulatedLinear, fake_quantize
from sala_export.specs import Precision


@pytest.mark.parametrize("precision", SCHEMES)
def test_loaded_model_computes_what_the_format_says(precision: Precision) -> None:
    path = quantized_tiny(precision)
    ids = torch.randint(0, 512, (1, 70), generator=torch.Generator().manual_seed(0))
    found = SalaForCausalLM.from_pretrained(path, dtype=torch.float32)
    emulated = [module for module in found.modules() if isinstance(module, EmulatedLinear)]
    assert len(emulated) == 2 * (8 if precision is Precision.MXFP8 else 7)
    with quantized_model(Path(path)) as reference:
        expected = reference(ids)
    # Sums are rounded alike, since both multiply dequantised numbers in fp32; reciprocals of NVFP4's scales are not.
    error = float((found(ids) - expected).norm() / expected.norm())
    assert error < (5e-2 if precision is Precision.NVFP4 else 1e-5)


def test_mxfp8_product_is_that_of_its_numbers_in_float64() -> None:
    weight = Checkpoint.open(tiny_checkpoint(1, Precision.MXFP8)).quantized["model.layers.0.mlp.up_proj.weight"]
    random = torch.Generator().manual_seed(4)
    # Groups of an input differ by fifteen powers of ten, and one is zero.
    x = torch.randn(9, 256, generator=random) * torch.logspace(-10, 5, 8).repeat_interleave(32)
    x[3, 64:96] = 0
    codes = torch.from_numpy(weight.data.raw()).view(torch.float8_e4m3fn).view(weight.shape).double()
    scales = torch.from_numpy(weight.scales()).double().repeat_interleave(32, 1)
    expected = round_mxfp8(x).double() @ (codes * scales).T
    linear = EmulatedLinear(weight)
    torch.testing.assert_close(linear(x).double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert linear.input_limit is None
    # Inputs that the format holds are not rounded again, whatever scale is given.
    assert torch.equal(fake_quantize(round_mxfp8(x).bfloat16(), Precision.MXFP8, 3.0), round_mxfp8(x))


def test_bf16_model_stays_bf16() -> None:
    model = SalaForCausalLM.from_pretrained(quantized_tiny(Precision.INT4))
    assert model.dtype is torch.bfloat16
    projection = model.get_submodule("model.layers.0.mlp.up_proj")
    assert projection(torch.zeros(1, 256, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_input_beyond_its_range_saturates() -> None:
    x = torch.tensor([[1000.0, -1000.0, 0.5, 0.0] * 4])
    assert fake_quantize(x, Precision.FP8, 1.0)[0, :4].tolist() == [448.0, -448.0, 0.5, 0.0]
    assert fake_quantize(x, Precision.INT8, 1.0)[0, :4].tolist() == [127.0, -128.0, 0.0, 0.0]
    # The group's scale saturates at 448, and 6 is the largest number.
    assert fake_quantize(x * 10, Precision.NVFP4, 1.0)[0, :2].tolist() == [2688.0, -2688.0]
    assert torch.equal(fake_quantize(x, Precision.INT4, 1.0), x)


def test_nvfp4_group_without_a_scale_is_zero() -> None:
    x = torch.cat((torch.full((16,), 1e-9), torch.full((16,), 3.0)))
    found = fake_quantize(x, Precision.NVFP4, 1.0)
    assert torch.equal(found[:16], torch.zeros(16))
    assert torch.equal(found[16:], torch.full((16,), 3.0))
