"""The block-scaled operators on the CPU through ONNX Runtime, against the definition of MXFP8 and float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from support.closeness import assert_close
from support.cpu_operators import CpuOperator, runnable_simd_levels, simd_level
from torch import Tensor

from sala_export.numerics.block_scales import mxfp8_values, quantize_mxfp8, scale_words, scales_of_words
from sala_export.ops.registry import (
    BLOCK_QUANTIZE,
    BLOCK_SCALED_LINEAR,
    BLOCK_SCALED_LINEAR_ADD,
    RMS_NORM_BLOCK_QUANTIZE,
)

ORT_ERRORS = (Fail, InvalidArgument, RuntimeException)
EPS = 1e-6
FACTOR = 0.25
HALF_STEP = 2.0**-4
"""Of an e4m3 code: how far a number may be from it, as a part of the number."""


@pytest.fixture(params=runnable_simd_levels())
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    with simd_level(request.param):
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wide_numbers(*shape: int) -> Tensor:
    """Of every magnitude that float32 has, subnormal ones too."""
    random = generator(0)
    return torch.randn(shape, generator=random) * torch.exp2(
        torch.randint(-149, 127, (*shape[:-1], shape[-1] // 32), generator=random)
    ).repeat_interleave(32, dim=-1)


def operands(tokens: int, columns: int, outputs: int, batch: int = 1) -> list[Tensor]:
    """Codes and words of x [batch, tokens, columns] and of a weight, whose scales differ from block to block."""
    random = generator(tokens + columns + outputs)

    def quantized(*shape: int) -> list[Tensor]:
        spread = torch.exp2(torch.randint(-6, 6, (*shape[:-1], columns // 32), generator=random))
        codes, scales = quantize_mxfp8(torch.randn(shape, generator=random) * spread.repeat_interleave(32, dim=-1))
        return [codes, scale_words(scales)]

    return [*quantized(batch, tokens, columns), *quantized(outputs, columns)]


def decoded(codes: Tensor, words: Tensor) -> Tensor:
    return mxfp8_values(codes, scales_of_words(words)).double()


def product(tensors: list[Tensor]) -> Tensor:
    """In float64, of the numbers that the operands stand for."""
    x, x_scales, weight, weight_scales = tensors[:4]
    return decoded(x, x_scales) @ decoded(weight, weight_scales).T


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def assert_quantizes(given: tuple[Tensor, ...], numbers: Tensor) -> None:
    """Codes and scales are those of `numbers`, float64, but for the last bits of float32."""
    codes, words = given
    values = decoded(codes, words)
    scales = scales_of_words(words).double().sub(127).exp2().repeat_interleave(32, dim=-1)
    allowed = (numbers.abs() * HALF_STEP).clamp(min=2.0**-10 * scales) * (1 + 1e-5)
    assert ((values - numbers).abs() <= allowed).all()
    expected_codes, expected_scales = quantize_mxfp8(numbers.float())
    assert torch.equal(scales_of_words(words), expected_scales)
    assert (bits(codes) == bits(expected_codes)).double().mean() > 0.999


@pytest.mark.parametrize(("tokens", "columns"), [(1, 128), (5, 384), (300, 128)])
def test_codes_and_scales_are_those_of_the_definition(level: None, tokens: int, columns: int) -> None:
    x = wide_numbers(2, tokens, columns)
    codes, words = CpuOperator(BLOCK_QUANTIZE, {"columns": columns, "gated": 0})(x)
    expected, scales = quantize_mxfp8(x)
    assert torch.equal(bits(codes), bits(expected))
    assert torch.equal(words, scale_words(scales))


def test_every_code_and_every_middle_between_two_is_rounded_as_defined(level: None) -> None:
    """With 448 in each block the scale is 1, and numbers are rounded as they are."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    given = torch.cat((numbers, middles, middles.nextafter(numbers[1:]), middles.nextafter(numbers[:-1])))
    given = torch.cat((given, -given))
    x = torch.full((1, -(-len(given) // 124), 128), 448.0)
    places = torch.arange(x.numel())[torch.arange(x.numel()) % 32 > 0]
    x.view(-1)[places[: len(given)]] = given
    codes, words = CpuOperator(BLOCK_QUANTIZE, {"columns": 128, "gated": 0})(x)
    expected, scales = quantize_mxfp8(x)
    assert (scales == 127).all()
    assert torch.equal(bits(codes), bits(expected))
    assert torch.equal(words, scale_words(scales))


def test_zeros_infinities_nans_and_largest_numbers_are_those_of_the_definition(level: None) -> None:
    x = wide_numbers(1, 8, 128)
    x[0, 0] = 0.0
    x[0, 1, 3], x[0, 1, 40] = torch.inf, -torch.inf
    x[0, 2, 127] = torch.nan
    x[0, 3, :32] = torch.finfo(torch.float32).max
    x[0, 4, :32] = -torch.finfo(torch.float32).tiny * 2.0**-23
    x[0, 5, 64] = -0.0
    codes, words = CpuOperator(BLOCK_QUANTIZE, {"columns": 128, "gated": 0})(x)
    expected, scales = quantize_mxfp8(x)
    assert torch.equal(words, scale_words(scales))
    assert torch.equal(bits(codes), bits(expected))
    assert scales[0, 1].tolist()[:2] == [255, 255]


@pytest.mark.parametrize(("tokens", "columns"), [(1, 640), (5, 128), (37, 384)])
def test_gated_rows_are_silu_of_the_gate_times_up(level: None, tokens: int, columns: int) -> None:
    x = 4 * torch.randn((2, tokens, 2 * columns), generator=generator(tokens))
    gate, up = x.double().chunk(2, dim=-1)
    given = CpuOperator(BLOCK_QUANTIZE, {"columns": columns, "gated": 1})(x)
    assert_quantizes(given, torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize(("tokens", "columns"), [(1, 4096), (5, 128), (37, 384)])
def test_rows_are_normed_before_they_are_quantised(level: None, tokens: int, columns: int) -> None:
    random = generator(tokens)
    x = 30 * torch.randn((2, tokens, columns), generator=random)
    weight = 1 + 0.2 * torch.randn(columns, generator=random)
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt() * weight
    assert_quantizes(CpuOperator(RMS_NORM_BLOCK_QUANTIZE, {"columns": columns, "eps": EPS})(x, weight), normed)


@pytest.mark.parametrize(
    ("tokens", "columns", "outputs"), [(1, 640, 136), (1, 128, 8), (5, 384, 40), (300, 384, 136), (300, 640, 8)]
)
def test_product_equals_float64(level: None, tokens: int, columns: int, outputs: int) -> None:
    tensors = operands(tokens, columns, outputs)
    (y,) = CpuOperator(BLOCK_SCALED_LINEAR, {})(*tensors)
    assert_close(y, product(tensors))


@pytest.mark.parametrize("tokens", [1, 37])
def test_product_is_scaled_and_added_to_the_stream(level: None, tokens: int) -> None:
    tensors = operands(tokens, 384, 136, batch=2)
    stream = 100 * torch.randn((2, tokens, 136), generator=generator(1))
    (y,) = CpuOperator(BLOCK_SCALED_LINEAR_ADD, {"factor": FACTOR})(*tensors, stream)
    assert_close(y, stream.double() + FACTOR * product(tensors))


def test_rows_do_not_depend_on_the_others_nor_on_threads() -> None:
    """600 rows are more than are computed at a time."""
    tensors = operands(600, 640, 72)
    (y,) = CpuOperator(BLOCK_SCALED_LINEAR, {}, threads=1)(*tensors)
    assert torch.equal(y, CpuOperator(BLOCK_SCALED_LINEAR, {}, threads=3)(*tensors)[0])
    for rows in (slice(0, 1), slice(7, 44), slice(511, 514)):
        x, words = tensors[0][:, rows].contiguous(), tensors[1][:, :, rows].contiguous()
        assert torch.equal(CpuOperator(BLOCK_SCALED_LINEAR, {})(x, words, *tensors[2:])[0], y[:, rows])


def test_nan_stays_in_its_row_and_column(level: None) -> None:
    x, x_scales, weight, weight_scales = operands(5, 128, 40)
    bits(x)[0, 1, 100] = 0x7F
    x_scales[0, 0, 3] |= 0xFF00
    bits(weight)[6, 2] = 0xFF
    weight_scales[0, 11] |= 0xFF
    (y,) = CpuOperator(BLOCK_SCALED_LINEAR, {})(x, x_scales, weight, weight_scales)
    is_nan = torch.zeros(5, 40, dtype=torch.bool)
    is_nan[[1, 3]] = is_nan[:, [6, 11]] = True
    assert torch.equal(y[0].isnan(), is_nan)


def test_every_code_and_every_scale_is_decoded(level: None) -> None:
    """Row n of the weight holds code n with scale n; x takes one of its numbers."""
    x, x_scales = quantize_mxfp8(torch.eye(1, 128)[None])
    count = torch.arange(256, dtype=torch.int32)
    weight = count.to(torch.uint8)[:, None].expand(256, 128).contiguous().view(torch.float8_e4m3fn)
    scales = count.to(torch.uint8)[:, None].expand(256, 4).contiguous()
    expected = mxfp8_values(weight, scales)[:, 0]
    (y,) = CpuOperator(BLOCK_SCALED_LINEAR, {})(x, scale_words(x_scales), weight, scale_words(scales))
    held = expected.isfinite() & ~mxfp8_values(weight, scales).isnan().any(-1)
    assert held.sum() > 240
    assert torch.equal(y[0, 0][held], expected[held])
    assert y[0, 0][~held].isnan().all()


def test_what_one_operator_writes_the_other_reads() -> None:
    """As in an engine's graph: norm, product, gate, product and the residual stream."""
    random = generator(2)
    x = torch.randn((1, 37, 256), generator=random)
    gate_up, down = operands(1, 256, 2 * 384)[2:], operands(1, 384, 256)[2:]
    normed = CpuOperator(RMS_NORM_BLOCK_QUANTIZE, {"columns": 256, "eps": EPS})(x, torch.ones(256))
    (both,) = CpuOperator(BLOCK_SCALED_LINEAR, {})(*normed, *gate_up)
    both /= both.abs().amax()
    gated = CpuOperator(BLOCK_QUANTIZE, {"columns": 384, "gated": 1})(both)
    (y,) = CpuOperator(BLOCK_SCALED_LINEAR_ADD, {"factor": FACTOR})(*gated, *down, x)
    gate, up = both.double().chunk(2, dim=-1)
    expected = x.double() + FACTOR * (torch.nn.functional.silu(gate) * up) @ decoded(*down).T
    assert_close(y, expected, tolerance=0.05)


@pytest.mark.parametrize(
    ("columns", "outputs", "message"),
    [(128, 12, "a kernel stores eight outputs at once"), (64, 8, "there is at least one word of scales")],
)
def test_broken_rule_is_refused_with_its_reason(columns: int, outputs: int, message: str) -> None:
    x = torch.zeros(1, 2, columns).to(torch.float8_e4m3fn)
    words = torch.zeros(columns // 128, 1, 2, dtype=torch.int32)
    weight = torch.zeros(outputs, columns).to(torch.float8_e4m3fn)
    with pytest.raises(ORT_ERRORS, match=f"BlockScaledLinear: .* does not hold .*: {message}"):
        CpuOperator(BLOCK_SCALED_LINEAR, {})(x, words, weight, torch.zeros(columns // 128, outputs, dtype=torch.int32))


@pytest.mark.parametrize("index", range(5))
def test_wrong_shape_is_refused_by_name(index: int) -> None:
    tensors = [*operands(3, 128, 8), torch.zeros(1, 3, 8)]
    tensors[index] = tensors[index][..., :-1].contiguous()
    later = "|".join(tensor.name for tensor in BLOCK_SCALED_LINEAR_ADD.inputs[index:])
    with pytest.raises(ORT_ERRORS, match=f"BlockScaledLinearAdd: ({later}) has shape .* expected"):
        CpuOperator(BLOCK_SCALED_LINEAR_ADD, {"factor": FACTOR})(*tensors)


@pytest.mark.parametrize(("gated", "message"), [(2, "gated <= 1 does not hold"), (-1, "gated >= 0 does not hold")])
def test_gate_is_on_or_off(gated: int, message: str) -> None:
    with pytest.raises(ORT_ERRORS, match=f"BlockQuantize: {message}"):
        CpuOperator(BLOCK_QUANTIZE, {"columns": 128, "gated": gated})(torch.zeros(1, 1, 128 * (1 + gated)))
