"""LightningAttention in torch against the per-token oracle, flash-linear-attention, and its promise about chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support import oracles
from support.closeness import assert_close
from support.fla_oracle import fla_naive_recurrent_simple_gla
from torch import Tensor

from sala_export.ops.lightning_attention.reference import decay_slopes
from sala_export.ops.lightning_attention.torch_op import lightning_attention

EPS = 1e-6


def projections(
    batch: int, tokens: int, heads: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Random `qkvz`, norm weights around one, and a state of the size that a long past leaves."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    norms = (
        (1 + 0.2 * normal(dim)).to(dtype),
        (1 + 0.2 * normal(dim)).to(dtype),
        (1 + 0.2 * normal(heads * dim)).to(dtype),
    )
    return normal(batch, tokens, 4 * heads * dim).to(dtype), norms, 5 * normal(batch, heads, dim, dim)


def rope_rows(positions: Sequence[int], dim: int) -> Tensor:
    """Operator input `rope_cos_sin` of one sequence, [N, D]."""
    return torch.from_numpy(np.concatenate(oracles.rope_cos_sin(positions, dim), axis=1)).float()


def run(
    qkvz: Tensor, norms: tuple[Tensor, Tensor, Tensor], rope_cos_sin: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    _, heads, dim, _ = state.shape
    y, state_out = lightning_attention(
        qkvz, *norms, rope_cos_sin, state, num_heads=heads, head_dim=dim, eps=EPS, scale=1 / math.sqrt(dim)
    )
    return y, state_out


@pytest.mark.parametrize("past", [0, 4_321])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 257])
@pytest.mark.parametrize(("heads", "dim"), [(1, 32), (4, 16), (32, 8)])
def test_chunk_equals_oracle(heads: int, dim: int, tokens: int, past: int) -> None:
    qkvz, norms, state = projections(1, tokens, heads, dim, seed=tokens)
    state = state if past else torch.zeros_like(state)
    positions = range(past, past + tokens)
    y, state_out = run(qkvz, norms, rope_rows(positions, dim)[None], state)
    expected, last = oracles.lightning_attention(
        qkvz[0], norms, positions, state[0], num_heads=heads, head_dim=dim, eps=EPS, scale=1 / math.sqrt(dim)
    )
    assert_close(y[0], torch.from_numpy(expected))
    assert_close(state_out[0], torch.from_numpy(last))


def test_batch_rows_at_different_positions_are_independent() -> None:
    heads, dim, tokens, pasts = 4, 16, 65, (0, 1000)
    qkvz, norms, state = projections(2, tokens, heads, dim)
    state[0] = 0
    rope = torch.stack([rope_rows(range(past, past + tokens), dim) for past in pasts])
    y, state_out = run(qkvz, norms, rope, state)
    for row, past in enumerate(pasts):
        expected, last = oracles.lightning_attention(
            qkvz[row],
            norms,
            range(past, past + tokens),
            state[row],
            num_heads=heads,
            head_dim=dim,
            eps=EPS,
            scale=1 / math.sqrt(dim),
        )
        assert_close(y[row], torch.from_numpy(expected))
        assert_close(state_out[row], torch.from_numpy(last))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_equals_oracle_to_its_own_rounding(dtype: torch.dtype) -> None:
    """The oracle rounds q, k and y where the contract does; fp32 against fp64 flips a few of those roundings."""
    heads, dim, tokens = 4, 16, 130
    qkvz, norms, state = projections(1, tokens, heads, dim, dtype=dtype)
    y, state_out = run(qkvz, norms, rope_rows(range(tokens), dim)[None], state)
    expected, last = oracles.lightning_attention(
        qkvz[0], norms, range(tokens), state[0], num_heads=heads, head_dim=dim, eps=EPS, scale=1 / math.sqrt(dim)
    )
    assert y.dtype == dtype
    assert state_out.dtype == torch.float32
    exact = torch.from_numpy(expected)
    assert_close(y[0], exact, torch.finfo(dtype).eps)
    assert (y[0] == exact.to(dtype)).double().mean() > 0.98
    assert_close(state_out[0], torch.from_numpy(last), torch.finfo(dtype).eps / 4)


def test_float16_survives_outputs_beyond_its_range() -> None:
    """Before the output norm, o is some 1e6 here: it must never exist in float16."""
    heads, dim, tokens = 4, 16, 130
    qkvz, norms, state = projections(1, tokens, heads, dim, dtype=torch.float16)
    y, state_out = run(qkvz, norms, rope_rows(range(tokens), dim)[None], 1e6 * state)
    expected, _ = oracles.lightning_attention(
        qkvz[0], norms, range(tokens), 1e6 * state[0], num_heads=heads, head_dim=dim, eps=EPS, scale=1 / math.sqrt(dim)
    )
    assert state_out.abs().max() > torch.finfo(torch.float16).max
    assert_close(y[0], torch.from_numpy(expected), torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("chunks", [[1] * 300, [64] * 4 + [44], [1, 63, 65, 107, 17, 47], [299, 1]])
def test_any_split_gives_the_output_and_state_of_one_prefill(chunks: list[int]) -> None:
    heads, dim, tokens = 8, 16, 300
    qkvz, norms, state = projections(2, tokens, heads, dim, seed=1)
    rope = rope_rows(range(tokens), dim).expand(2, -1, -1)
    y, state_out = run(qkvz, norms, rope, state)
    outputs, start = [], 0
    for chunk in chunks:
        rows = slice(start, start + chunk)
        part, state = run(qkvz[:, rows], norms, rope[:, rows], state)
        outputs.append(part)
        start += chunk
    assert start == tokens
    assert_close(torch.cat(outputs, dim=1), y)
    assert_close(state, state_out)


def test_input_state_is_left_alone() -> None:
    qkvz, norms, state = projections(1, 5, 2, 8)
    before = state.clone()
    run(qkvz, norms, rope_rows(range(5), 8)[None], state)
    assert torch.equal(state, before)


def test_slopes_are_those_of_the_published_model() -> None:
    """2^(-0.25 (h + 1)) for 32 heads: from 0.84 down to 1/256."""
    expected = torch.tensor([2 ** (-0.25 * (h + 1)) for h in range(32)])
    assert_close(decay_slopes(32), expected, 1e-7)
    assert decay_slopes(32)[-1] == 1 / 256


def unit_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 65), (4, 130), (32, 257)])
def test_recurrence_equals_that_of_flash_linear_attention(heads: int, tokens: int, past: bool) -> None:
    """More than 107 tokens of head 0 overflow fp32 where decays are not formed from differences."""
    dim = 16
    qkvz, _, state = projections(2, tokens, heads, dim, seed=3)
    state = state if past else torch.zeros_like(state)
    # Without rotation, and with norm weights of one, the operator is its recurrence between norms of known input.
    norms = torch.ones(dim), torch.ones(dim), torch.ones(heads * dim)
    no_rotation = torch.cat((torch.ones(2, tokens, dim // 2), torch.zeros(2, tokens, dim // 2)), dim=-1)
    y, state_out = run(qkvz, norms, no_rotation, state)

    q, k, v, z = qkvz.view(2, tokens, 4, heads, dim).unbind(2)
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)])
    o, fla_state = fla_naive_recurrent_simple_gla()(
        unit_rms(q),
        unit_rms(k),
        v,
        (-slopes).expand(2, tokens, heads),
        scale=1 / math.sqrt(dim),
        initial_state=state,
        output_final_state=True,
    )
    gate = torch.sigmoid(z).reshape(2, tokens, -1)
    assert_close(y, unit_rms(o.reshape(2, tokens, -1)) * gate)
    assert_close(state_out, fla_state)
