"""LightningAttention: the Triton kernels, interpreted and on a GPU, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from support.closeness import assert_close
from support.findings import assert_passed
from support.kernel_probes import run_again
from support.lightning_checks import (
    HEADS,
    attributes,
    check_against_reference,
    cut_finely,
    findings,
    in_type,
    random_inputs,
)
from support.triton_interpreter import DEVICES, call_interpreting, run_interpreted
from torch import Tensor

from sala_export.errors import ShapeError


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype"),
    [
        (1, 32, torch.float32),
        (1, 64, torch.float16),
        (1, 128, torch.bfloat16),
        (15, 64, torch.bfloat16),
        (15, 128, torch.float16),
        (64, 128, torch.float32),
        (64, 64, torch.float16),
        (100, 128, torch.bfloat16),
        (100, 32, torch.float16),
        (257, 32, torch.float32),
        (257, 64, torch.bfloat16),
    ],
    ids=str,
)
def test_kernels_match_reference(tokens: int, head_dim: int, dtype: torch.dtype, device: str) -> None:
    check_against_reference(in_type(random_inputs(tokens, head_dim), dtype), attributes(head_dim), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype", "batch", "heads"),
    [
        # Three segments, the last ragged; head 0 hands on its last 96 tokens only, head 3 every one.
        (1030, 32, torch.float32, 1, 4),
        (513, 64, torch.float32, 2, 1),
        (1100, 128, torch.bfloat16, 1, 1),
        (1100, 64, torch.float16, 1, 2),
    ],
    ids=str,
)
def test_segments_match_reference(
    tokens: int, head_dim: int, dtype: torch.dtype, batch: int, heads: int, device: str
) -> None:
    inputs = in_type(random_inputs(tokens, head_dim, batch=batch, heads=heads), dtype)
    check_against_reference(inputs, attributes(head_dim, heads), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "batch", "heads"),
    # 64 heads of 128 channels are more than one tile of the last program, in channels as in sums of squares.
    [(128, torch.bfloat16, 1, 4), (64, torch.float16, 3, 1), (32, torch.float32, 3, 2), (128, torch.float16, 1, 64)],
    ids=str,
)
def test_one_token_matches_reference(head_dim: int, dtype: torch.dtype, batch: int, heads: int, device: str) -> None:
    inputs = in_type(random_inputs(1, head_dim, batch=batch, heads=heads), dtype)
    check_against_reference(inputs, attributes(head_dim, heads), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_token_again_gives_equal_bits_and_leaves_counters_zero(batch: int, device: str) -> None:
    inputs = in_type(random_inputs(1, 64, batch=batch), torch.bfloat16)
    if device == "cuda":
        runs = run_again("lightning_attention", [x.cuda() for x in inputs], attributes(64), 50)
    else:
        runs = call_interpreting(run_again, "lightning_attention", inputs, attributes(64), 2)
    first = runs[0][0]
    for outputs, counters in runs:
        assert all(torch.equal(outputs[name], first[name]) for name in first)
        assert counters["finished"].tolist() == [0] * batch


@pytest.mark.parametrize(
    ("sm", "tokens", "head_dim", "dtype", "batch", "heads"),
    [
        (90, 430, 64, torch.bfloat16, 2, 1),
        (120, 400, 128, torch.float16, 1, 2),
        (90, 400, 32, torch.float32, 1, 4),
    ],
    ids=str,
)
def test_parts_of_segments_match_reference(
    sm: int, tokens: int, head_dim: int, dtype: torch.dtype, batch: int, heads: int
) -> None:
    """Head 0 of 4 reaches back 89 of the 192 tokens of a segment, which is one part; heads 1 to 3 hand on two."""
    inputs = in_type(random_inputs(tokens, head_dim, batch=batch, heads=heads), dtype)
    assert_passed(findings(inputs, attributes(head_dim, heads), cut_finely(sm)))


def test_state_that_grows_from_1e_minus_30_to_1e9_and_decays_matches_reference() -> None:
    """Its unit has to follow it, in either direction and by value channel, or it overflows or vanishes in float16."""
    inputs = random_inputs(400, 32, batch=1)
    inputs[5] *= 1e-30
    values = inputs[0][..., 2 * HEADS * 32 : 3 * HEADS * 32]
    values *= 1e-12
    # Head 0 forgets half in 3 tokens: it has them for 30 tokens, some channels for 10, and is back after 170 more.
    values[:, 100:130, :16] = 1e9
    values[:, 120:130, 16:32] = 1e6
    assert_passed(findings(in_type(inputs, torch.bfloat16), attributes(32, eps=0.0), cut_finely(90)))


def run_in_chunks(inputs: list[Tensor], attrs: dict[str, int | float], chunks: list[int]) -> tuple[Tensor, Tensor]:
    """`y` of all chunks and the last state."""
    qkvz, *norms, rope, state = inputs
    assert sum(chunks) == qkvz.shape[1]
    parts = []
    for rows, angles in zip(qkvz.split(chunks, dim=1), rope.split(chunks, dim=1), strict=True):
        chunk = [rows.contiguous(), *norms, angles.contiguous(), state]
        part = run_interpreted("lightning_attention", chunk, attrs)
        parts.append(part["y"])
        state = part["state_out"]
    return torch.cat(parts, dim=1), state


@pytest.mark.parametrize(
    ("heads", "chunks"),
    [(HEADS, [31, 1, 34]), (HEADS, [1] * 33), (1, [512, 1, 517])],
    ids=["uneven", "token by token", "one to two segments"],
)
def test_any_split_matches_one_prefill(heads: int, chunks: list[int]) -> None:
    inputs = random_inputs(sum(chunks), 32, heads=heads)
    attrs = attributes(32, heads)
    y, state = run_in_chunks(inputs, attrs, [sum(chunks)])
    y_of_chunks, state_of_chunks = run_in_chunks(inputs, attrs, chunks)
    assert_close(y_of_chunks, y)
    assert_close(state_of_chunks, state)


@pytest.mark.parametrize(("tokens", "heads"), [(1, HEADS), (100, HEADS), (600, 1)])
def test_float16_output_beyond_its_range_before_the_norm_stays_finite(tokens: int, heads: int) -> None:
    # Equal queries, keys and values make o grow to scale * D * sum(decay) * v, far above 65504.
    inputs = random_inputs(tokens, 64, heads=heads)
    inputs[0] = torch.ones_like(inputs[0])
    inputs[0][..., 2 * heads * 64 : 3 * heads * 64] = 30000.0
    inputs[4] = inputs[4][:, :1].expand_as(inputs[4]).contiguous()
    inputs[5] = 1e5 * inputs[5].abs()
    # Equal operands are rounded alike, so their errors add up where others average out: half a unit more.
    check_against_reference(in_type(inputs, torch.float16), attributes(64, heads), allowance=2.0**-11)


def test_bfloat16_queries_and_state_beyond_float16_match_reference() -> None:
    """Their product is computed in float16."""
    inputs = random_inputs(70, 64)
    inputs[1] = 1e6 * inputs[1]
    inputs[5] = 1e9 * inputs[5]
    check_against_reference(in_type(inputs, torch.bfloat16), attributes(64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nan_in_a_value_reaches_every_channel_of_its_row(dtype: torch.dtype) -> None:
    """The stored form of the outputs is an integer, which cannot hold it."""
    inputs = in_type(random_inputs(40, 32), dtype)
    inputs[0][0, 35, 2 * HEADS * 32 + 7] = float("nan")
    y = run_interpreted("lightning_attention", inputs, attributes(32))["y"]
    assert y[0, 35:].isnan().all()
    assert y[1].isfinite().all()


def test_rows_of_zeros_without_eps_leave_the_state_of_a_ragged_tile_finite() -> None:
    inputs = random_inputs(33, 32)
    check_against_reference(inputs, attributes(32, eps=0.0))


def test_input_that_is_not_contiguous_is_refused() -> None:
    inputs = random_inputs(2, 32)
    inputs[0] = torch.cat((inputs[0], inputs[0]), dim=1)[:, :2]
    with pytest.raises(ShapeError, match="qkvz is not contiguous"):
        run_interpreted("lightning_attention", inputs, attributes(32))
