"""LightningAttention: the Triton kernels, interpreted and on a GPU, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from support.triton_interpreter import DEVICES, run_interpreted, run_kernels_on
from torch import Tensor

from sala_export.errors import ShapeError
from sala_export.model.rope import inverse_frequencies, rope_cos_sin
from sala_export.ops.lightning_attention.reference import lightning_attention

BATCH = 2
HEADS = 4
FLOOR = 1e-6
"""Error allowed beyond twice that of the reference in the same type: sums in another order."""


def attributes(head_dim: int, eps: float = 1e-6) -> dict[str, int | float]:
    return {"num_heads": HEADS, "head_dim": head_dim, "eps": eps, "scale": head_dim**-0.5}


def random_inputs(tokens: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels = HEADS * head_dim
    positions = torch.tensor([[5], [70000]]) + torch.arange(tokens)
    return [
        normal(BATCH, tokens, 4 * channels).to(dtype),
        *(1 + 0.3 * normal(width) for width in (head_dim, head_dim, channels)),
        rope_cos_sin(positions, inverse_frequencies(10000.0, head_dim)),
        3 * normal(BATCH, HEADS, head_dim, head_dim),
    ]


def in_type(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The four activations in `dtype`."""
    return [x.to(dtype) for x in inputs[:4]] + inputs[4:]


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).abs().max() / exact.abs().max())


def check_against_reference(inputs: list[Tensor], attrs: dict[str, int | float], device: str = "interpreter") -> None:
    exact = lightning_attention(*(x.double() for x in inputs), **attrs)
    same_type = lightning_attention(*inputs, **attrs)
    result = run_kernels_on(device, "lightning_attention", inputs, attrs)
    for name, exact_value, peer in zip(("y", "state_out"), exact, same_type, strict=True):
        assert result[name].dtype == peer.dtype
        limit = 2 * relative_error(peer, exact_value) + FLOOR
        assert relative_error(result[name], exact_value) <= limit, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype"),
    [
        (1, 32, torch.float32),
        (1, 64, torch.float16),
        (1, 128, torch.bfloat16),
        (15, 64, torch.bfloat16),
        (64, 128, torch.float32),
        (100, 128, torch.bfloat16),
        (100, 32, torch.float16),
        (257, 32, torch.float32),
    ],
    ids=str,
)
def test_kernels_match_reference(tokens: int, head_dim: int, dtype: torch.dtype, device: str) -> None:
    check_against_reference(in_type(random_inputs(tokens, head_dim, dtype), dtype), attributes(head_dim), device)


def test_split_prefill_and_decode_match_one_prefill() -> None:
    inputs = random_inputs(66, 32, torch.float32)
    attrs = attributes(32)
    whole = run_interpreted("lightning_attention", inputs, attrs)
    qkvz, *norms, rope, state = inputs
    parts = []
    for start, end in ((0, 31), (31, 32), (32, 66)):
        chunk = [qkvz[:, start:end].contiguous(), *norms, rope[:, start:end].contiguous(), state]
        part = run_interpreted("lightning_attention", chunk, attrs)
        parts.append(part["y"])
        state = part["state_out"]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole["y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(state, whole["state_out"], rtol=0, atol=1e-5 * float(state.abs().max()))


@pytest.mark.parametrize("tokens", [1, 100])
def test_float16_output_beyond_its_range_before_the_norm_stays_finite(tokens: int) -> None:
    # Equal queries, keys and values make o grow to scale * D * sum(decay) * v, far above 65504.
    inputs = random_inputs(tokens, 64, torch.float16)
    inputs[0] = torch.ones_like(inputs[0])
    inputs[0][..., 2 * HEADS * 64 : 3 * HEADS * 64] = 30000.0
    inputs[4] = inputs[4][:, :1].expand_as(inputs[4]).contiguous()
    inputs[5] = 1e5 * inputs[5].abs()
    check_against_reference(in_type(inputs, torch.float16), attributes(64))


def test_rows_of_zeros_without_eps_leave_the_state_of_a_ragged_tile_finite() -> None:
    inputs = random_inputs(33, 32, torch.float32)
    check_against_reference(inputs, attributes(32, eps=0.0))


def test_input_that_is_not_contiguous_is_refused() -> None:
    inputs = random_inputs(2, 32, torch.float32)
    inputs[0] = torch.cat((inputs[0], inputs[0]), dim=1)[:, :2]
    with pytest.raises(ShapeError, match="qkvz is not contiguous"):
        run_interpreted("lightning_attention", inputs, attributes(32))
