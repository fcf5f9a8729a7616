"""LightningAttention on the CPU through ONNX Runtime, against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from support.closeness import assert_close
from support.cpu_operators import CpuOperator, runnable_simd_levels, simd_level
from torch import Tensor

from sala_export.ops.lightning_attention.reference import lightning_attention
from sala_export.ops.lightning_attention.schema import CONTRACT

ORT_ERRORS = (Fail, InvalidArgument, RuntimeException)
EPS = 1e-6


def attributes(heads: int, dim: int) -> dict[str, int | float]:
    return {"num_heads": heads, "head_dim": dim, "eps": EPS, "scale": 1 / math.sqrt(dim)}


def inputs(batch: int, tokens: int, heads: int, dim: int, past: int = 0, seed: int = 0) -> list[Tensor]:
    """Random inputs in the contract's order, with the angles of positions from `past` on."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    angle = torch.arange(past, past + tokens)[:, None] * 10_000 ** (-torch.arange(0, dim, 2) / dim)
    cos_sin = torch.cat((angle.cos(), angle.sin()), dim=-1).expand(batch, tokens, dim)
    return [
        normal(batch, tokens, 4 * heads * dim),
        1 + 0.2 * normal(dim),
        1 + 0.2 * normal(dim),
        1 + 0.2 * normal(heads * dim),
        cos_sin.contiguous(),
        5 * normal(batch, heads, dim, dim),
    ]


def expected(tensors: list[Tensor], heads: int, dim: int) -> tuple[Tensor, Tensor]:
    return lightning_attention(*(x.double() for x in tensors), **attributes(heads, dim))


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize(("batch", "heads", "dim"), [(1, 2, 128), (2, 4, 64), (2, 1, 32), (1, 8, 96)])
def test_output_and_state_equal_float64_reference(batch: int, heads: int, dim: int, tokens: int) -> None:
    tensors = inputs(batch, tokens, heads, dim, past=4_321, seed=tokens)
    before = [x.clone() for x in tensors]
    y, state = CpuOperator(CONTRACT, attributes(heads, dim))(*tensors)
    y_expected, state_expected = expected(tensors, heads, dim)
    assert_close(y, y_expected)
    assert_close(state, state_expected)
    assert all(torch.equal(x, old) for x, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("tokens", [1, 7, 130])
@pytest.mark.parametrize("level", runnable_simd_levels())
def test_every_simd_level_equals_float64_reference(level: str, tokens: int) -> None:
    tensors = inputs(2, tokens, 4, 128, past=17, seed=3)
    with simd_level(level):
        y, state = CpuOperator(CONTRACT, attributes(4, 128))(*tensors)
    y_expected, state_expected = expected(tensors, 4, 128)
    assert_close(y, y_expected)
    assert_close(state, state_expected)


@pytest.mark.parametrize("tokens", [1, 70, 600])
def test_state_bound_to_one_buffer_is_updated_in_place(tokens: int) -> None:
    tensors = inputs(2, tokens, 4, 32, seed=5)
    operator = CpuOperator(CONTRACT, attributes(4, 32))
    y_expected, state_expected = operator(*tensors)
    y = operator.update(*tensors)
    assert torch.equal(y, y_expected)
    assert torch.equal(tensors[-1], state_expected)


@pytest.mark.parametrize("chunks", [[1] * 20 + [480], [64, 436], [129, 371], [499, 1]])
def test_chunks_equal_one_prefill(chunks: list[int]) -> None:
    tokens, heads, dim = sum(chunks), 4, 64
    tensors = inputs(1, tokens, heads, dim, seed=7)
    operator = CpuOperator(CONTRACT, attributes(heads, dim))
    y_expected, state_expected = operator(*tensors)
    state = tensors[-1]
    parts, first = [], 0
    for chunk in chunks:
        rows = slice(first, first + chunk)
        qkvz, cos_sin = tensors[0][:, rows].contiguous(), tensors[4][:, rows].contiguous()
        parts.append(operator.update(qkvz, *tensors[1:4], cos_sin, state))
        first += chunk
    assert_close(torch.cat(parts, dim=1), y_expected)
    assert_close(state, state_expected)


def test_result_does_not_depend_on_thread_count() -> None:
    tensors = inputs(2, 333, 8, 64, seed=9)
    one = CpuOperator(CONTRACT, attributes(8, 64), threads=1)(*tensors)
    for threads in (2, 3):
        several = CpuOperator(CONTRACT, attributes(8, 64), threads=threads)(*tensors)
        assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


def test_large_output_before_the_norm_survives() -> None:
    """o beyond the range of float16 is normal in a long context; in float32 nothing may overflow."""
    tensors = inputs(1, 80, 2, 32, seed=11)
    tensors[-1] *= 1e6
    y, state = CpuOperator(CONTRACT, attributes(2, 32))(*tensors)
    y_expected, state_expected = expected(tensors, 2, 32)
    assert_close(y, y_expected)
    assert_close(state, state_expected)


def test_attributes_of_the_tensorrt_node_are_ignored() -> None:
    tensors = inputs(1, 5, 2, 32)
    plain = CpuOperator(CONTRACT, attributes(2, 32))(*tensors)
    extra = {"plugin_namespace": "sala", "plugin_version": "1"}
    assert torch.equal(CpuOperator(CONTRACT, attributes(2, 32) | extra)(*tensors)[0], plain[0])


@pytest.mark.parametrize("missing", ["num_heads", "head_dim", "eps", "scale"])
def test_missing_attribute_is_refused_by_name(missing: str) -> None:
    rest = {name: value for name, value in attributes(2, 32).items() if name != missing}
    with pytest.raises(ORT_ERRORS, match=f"LightningAttention.*attribute {missing}"):
        CpuOperator(CONTRACT, rest)


@pytest.mark.parametrize("index", range(6))
def test_wrong_shape_is_refused_by_name(index: int) -> None:
    tensors = inputs(1, 5, 2, 32)
    tensors[index] = torch.cat((tensors[index], tensors[index]), dim=-1)
    name = CONTRACT.inputs[index].name
    with pytest.raises(ORT_ERRORS, match=f"LightningAttention: {name} has shape .* expected"):
        CpuOperator(CONTRACT, attributes(2, 32))(*tensors)


@pytest.mark.parametrize(("heads", "dim", "message"), [(3, 32, "power of two"), (2, 24, "multiple of 32")])
def test_unsupported_sizes_are_refused(heads: int, dim: int, message: str) -> None:
    with pytest.raises(ORT_ERRORS, match=message):
        CpuOperator(CONTRACT, attributes(heads, dim))(*inputs(1, 5, heads, dim))


def test_empty_chunk_is_refused() -> None:
    with pytest.raises(ORT_ERRORS, match="at least one token"):
        CpuOperator(CONTRACT, attributes(2, 32))(*inputs(1, 0, 2, 32))
