"""Four-bit packing and the stored formats, bit for bit against compressed-tensors, and against a plain reading."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import (
    pack_fp4_to_uint8,
    pack_to_int32,
    unpack_fp4_from_uint8,
    unpack_from_int32,
)
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as oracle_dequantize
from torch import Tensor

from sala_export.checkpoint.quantization import SCHEMES, Quantization
from sala_export.numerics.block_scales import quantize_mxfp8
from sala_export.numerics.number_formats import E2M1_VALUES
from sala_export.numerics.packing import pack_e2m1, pack_int4, unpack_e2m1, unpack_int4
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

ROWS, COLUMNS = 7, 384


def integers() -> Tensor:
    return torch.randint(-8, 8, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0), dtype=torch.int8)


def e2m1_numbers() -> Tensor:
    values = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)])
    return values[torch.randint(0, 16, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(1))]


def weight() -> Tensor:
    random = torch.Generator().manual_seed(2)
    rows = torch.randn(ROWS, COLUMNS, generator=random) * torch.logspace(-3, 1, ROWS)[:, None]
    rows[3, 128:256] = 0.0
    return rows


def test_int4_is_packed_as_compressed_tensors_packs_it() -> None:
    packed = pack_int4(integers())
    assert packed.dtype is torch.int32
    assert torch.equal(packed, pack_to_int32(integers(), 4))
    assert torch.equal(unpack_int4(packed), integers())
    assert torch.equal(unpack_from_int32(packed, 4, torch.Size((ROWS, COLUMNS))), integers())


def test_first_nibble_is_the_lowest() -> None:
    assert pack_int4(torch.tensor([[-8, -7, 0, 7, -8, -8, -8, -8]])).tolist() == [[0xF810]]
    assert pack_e2m1(torch.tensor([[0.5, -6.0]])).tolist() == [[0xF1]]


def test_e2m1_is_packed_as_compressed_tensors_packs_it() -> None:
    numbers = e2m1_numbers()
    packed = pack_e2m1(numbers)
    assert torch.equal(packed, pack_fp4_to_uint8(numbers))
    assert torch.equal(unpack_e2m1(packed), numbers)
    assert torch.equal(torch.signbit(unpack_e2m1(packed)), torch.signbit(numbers))
    assert torch.equal(unpack_fp4_from_uint8(packed, ROWS, COLUMNS, torch.float32), numbers)


def quantized(precision: Precision) -> dict[str, Tensor]:
    if precision is Precision.INT4:
        return quantize_int4(weight(), int4_scale(weight(), torch.ones(COLUMNS)))
    if precision is Precision.NVFP4:
        return quantize_nvfp4(weight(), nvfp4_global_scale(float(weight().abs().max())))
    if precision is Precision.MXFP8:
        codes, scales = quantize_mxfp8(weight())
        return {"weight": codes, "weight_scale": scales}
    return quantize_per_tensor(weight(), per_tensor_scale(float(weight().abs().max()), precision), precision)


@pytest.mark.parametrize("precision", SCHEMES)
def test_stored_weights_mean_what_compressed_tensors_reads(precision: Precision) -> None:
    tensors = quantized(precision)
    group = Quantization.default(precision).to_dict()["config_groups"]["group_0"]
    arguments = QuantizationArgs(**group["weights"])
    global_scale = tensors.get("weight_global_scale")
    codes = {
        Precision.INT4: lambda: unpack_from_int32(tensors["weight_packed"], 4, torch.Size((ROWS, COLUMNS))),
        Precision.NVFP4: lambda: unpack_fp4_from_uint8(tensors["weight_packed"], ROWS, COLUMNS, torch.float32),
    }.get(precision, lambda: tensors["weight"])()
    scale = tensors["weight_scale"].to(torch.float32)
    if precision is Precision.MXFP8:
        scale = decompress_mx_scale(tensors["weight_scale"]).float()
    expected = oracle_dequantize(
        codes.to(torch.float32), scale, args=arguments, dtype=torch.float32, global_scale=global_scale
    )
    found = dequantize(
        precision,
        tensors["weight_packed"] if "weight_packed" in tensors else tensors["weight"],
        tensors["weight_scale"],
        1.0 if global_scale is None else 1.0 / float(global_scale),
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("precision", "step"),
    # Half a step at the largest number, over that number: 448 and 6 have steps of 32 and 2. The largest of a group of
    # MXFP8 may be little more than 256 times its scale, which has the same step.
    [
        (Precision.FP8, 16 / 448),
        (Precision.MXFP8, 16 / 256),
        (Precision.INT8, 0.5 / 127),
        (Precision.INT4, 0.5 / 7.5),
        (Precision.NVFP4, 1 / 6),
    ],
)
def test_round_trip_is_off_by_half_a_step_of_the_group(precision: Precision, step: float) -> None:
    tensors, original = quantized(precision), weight()
    found = dequantize(
        precision,
        tensors["weight_packed"] if "weight_packed" in tensors else tensors["weight"],
        tensors["weight_scale"],
        1.0 / float(tensors["weight_global_scale"]) if "weight_global_scale" in tensors else 1.0,
    )
    size = SCHEMES[precision].group or ROWS * COLUMNS
    error = (found - original).abs().reshape(-1, size).amax(1)
    # Scales of groups are rounded themselves, to 2^-4 in e4m3.
    largest = original.abs().reshape(-1, size).amax(1)
    assert bool((error <= largest * step * (1 + 2**-4) + 1e-30).all())
    assert torch.equal(found[3, 128:256], torch.zeros(128))


def test_clipped_groups_have_less_error_by_importance() -> None:
    random = torch.Generator().manual_seed(5)
    rows = torch.randn(64, 256, generator=random)
    importance = torch.rand(256, generator=random).pow(8) * 100
    errors = []
    for shrinks in ((1.0,), (1.0, 0.9, 0.8)):
        tensors = quantize_int4(rows, int4_scale(rows, importance, shrinks))
        found = dequantize(Precision.INT4, tensors["weight_packed"], tensors["weight_scale"])
        errors.append(float(((found - rows).square() * importance).sum()))
    assert errors[1] < 0.97 * errors[0]
