"""InfLLMv2Attention in torch against the per-token oracle, and its promises about chunks, ties and caches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from support import oracles
from support.closeness import FLOAT32_TOLERANCE, assert_close
from support.oracles import SparseSizes
from support.sparse_calls import Cache, blocks_of_op, feed, int32, projections
from torch import Tensor

from sala_export.errors import ShapeError
from sala_export.ops.infllmv2_attention import reference
from sala_export.ops.infllmv2_attention.torch_op import infllmv2_attention_

MARGIN = 1e-4
"""Relative margin at the cut above which fp32 must choose as exact arithmetic does."""

SALA = SparseSizes(
    num_heads=32,
    num_kv_heads=2,
    head_dim=8,
    scale=1 / math.sqrt(8),
    kernel_size=32,
    kernel_stride=16,
    block_size=64,
    topk=2,
    window_size=64,
    init_blocks=1,
    dense_len=-1,
)
"""Head counts and compression of the published model; topk and window small enough that short rows must choose."""

SMALL = replace(SALA, num_heads=4, head_dim=16, scale=0.25, kernel_size=16, kernel_stride=8, block_size=32)
CASES = {
    "sala": SALA,
    "small_blocks": SMALL,
    "no_initial_block": replace(SMALL, init_blocks=0, topk=1, window_size=32),
    "two_initial_blocks": replace(SMALL, init_blocks=2, topk=4, window_size=0, num_kv_heads=1),
    "own_block_only": replace(SMALL, init_blocks=0, topk=1, window_size=0),
    "no_group": replace(SMALL, num_heads=3, num_kv_heads=3, kernel_size=24, topk=3, scale=0.3),
    "blocks_shorter_than_k2": replace(SMALL, block_size=16, init_blocks=0, topk=2, window_size=0),
    "dense": replace(SALA, num_heads=6, dense_len=1_000_000),
}


def outputs(expected: Sequence[oracles.SparseResult]) -> Tensor:
    """Oracle outputs as one tensor, [rows, H D]."""
    return torch.from_numpy(np.stack([result.y for result in expected]))


def sure_rows(expected: Sequence[oracles.SparseResult]) -> list[bool]:
    """Rows whose blocks fp32 must choose as exact arithmetic does, in every key head."""
    sure = [all(m == 0 or m > MARGIN for m in result.margins) for result in expected]
    assert sum(sure) >= 0.98 * len(sure), "these inputs do not test the selection"
    return sure


def assert_matches_oracle(
    qkvg: Tensor, y: Tensor, cache: Cache, row: int, past: int, context: int, sizes: SparseSizes, tolerance: float
) -> None:
    """One batch entry: caches, and blocks and output of every row whose choice is not within rounding of another."""
    end = len(qkvg)
    expected, k1, k2 = oracles.infllmv2_attention(qkvg, range(past, end), context, sizes)
    for compressed, exact in ((cache.k1[row], torch.from_numpy(k1)), (cache.k2[row], torch.from_numpy(k2))):
        complete = exact.shape[1]
        assert_close(compressed[:, :complete], exact, tolerance)
        assert compressed[:, complete:].isnan().all(), "wrote beyond the complete windows"
    kv = slice(sizes.num_heads * sizes.head_dim, (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim)
    stored = torch.stack((cache.k[row, :, :end], cache.v[row, :, :end])).permute(2, 0, 1, 3).reshape(end, -1)
    assert torch.equal(stored, qkvg[:, kv])
    assert cache.k[row, :, end:].isnan().all()
    assert cache.v[row, :, end:].isnan().all()

    sure = sure_rows(expected)
    if context >= sizes.dense_len:
        actual = blocks_of_op(qkvg[past:], cache, row, past, sizes)
        assert [b for b, s in zip(actual, sure, strict=True) if s] == [
            list(r.blocks) for r, s in zip(expected, sure, strict=True) if s
        ]
    assert y.isfinite().all()
    kept = torch.tensor(sure)
    assert_close(y[kept], outputs(expected)[kept], tolerance)


@pytest.mark.parametrize("past", [0, 193])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 257])
@pytest.mark.parametrize("case", CASES)
def test_chunk_equals_oracle(case: str, tokens: int, past: int) -> None:
    sizes = CASES[case]
    qkvg = projections(past + tokens, sizes, seed=tokens)
    cache = Cache.empty(1, past + tokens + 7, sizes)
    context = int32([past + tokens])
    if past:
        infllmv2_attention_(qkvg[None, :past], int32([0]), context, *cache.tensors(), **asdict(sizes))
    y = infllmv2_attention_(qkvg[None, past:], int32([past]), context, *cache.tensors(), **asdict(sizes))
    assert_matches_oracle(qkvg, y[0], cache, 0, past, past + tokens, sizes, FLOAT32_TOLERANCE)


def test_batch_rows_of_different_past_are_independent() -> None:
    """Row 0 starts a sequence and is dense, row 1 continues one and is sparse, in one call."""
    sizes = replace(SMALL, dense_len=200)
    tokens, pasts = 65, (0, 321)
    sequences = [projections(past + tokens, sizes, seed=past) for past in pasts]
    cache = Cache.empty(2, 400, sizes)
    alone = feed(sequences[1][: pasts[1]], [pasts[1]], sizes, 400)[1]
    for whole, part in zip(cache.tensors(), alone.tensors(), strict=True):
        whole[1] = part[0]
    ends = [past + tokens for past in pasts]
    y = infllmv2_attention_(
        torch.stack([s[-tokens:] for s in sequences]), int32(pasts), int32(ends), *cache.tensors(), **asdict(sizes)
    )
    for row, (sequence, past) in enumerate(zip(sequences, pasts, strict=True)):
        assert_matches_oracle(sequence, y[row], cache, row, past, ends[row], sizes, FLOAT32_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_equals_oracle_up_to_one_rounding_of_the_output(dtype: torch.dtype) -> None:
    """Inputs and caches are exact in both, so only the last rounding differs: half a step of the largest value."""
    qkvg = projections(300, SMALL, seed=5, dtype=dtype)
    y, cache = feed(qkvg, [300], SMALL, 320)
    expected, k1, _ = oracles.infllmv2_attention(qkvg, range(300), 300, SMALL)
    # A sum in fp32 and one in fp64 may round to neighbouring values of the cache type.
    assert_close(cache.k1[0, :, : k1.shape[1]], torch.from_numpy(k1), torch.finfo(dtype).eps)
    actual = blocks_of_op(qkvg, cache, 0, 0, SMALL)
    same = torch.tensor([list(r.blocks) == a for r, a in zip(expected, actual, strict=True)])
    assert same.float().mean() > 0.95
    assert_close(y[same], outputs(expected)[same], torch.finfo(dtype).eps)


def test_wrong_selection_would_show_in_the_output() -> None:
    """The comparisons above can fail: one block more changes rows by far more than their tolerance."""
    qkvg = projections(257, SMALL, seed=0)
    y = feed(qkvg, [257], SMALL, 257)[0]
    wider = feed(qkvg, [257], replace(SMALL, topk=SMALL.topk + 1), 257)[0]
    assert (y - wider).abs().max() > 1000 * FLOAT32_TOLERANCE * y.abs().max()


def _splits(tokens: int) -> dict[str, list[int]]:
    odd = [1, 17, 63, 65, 31, 2, 130]
    return {"odd": [*odd, tokens - sum(odd)], "token_by_token": [1] * tokens, "blocks": [64] * 5 + [tokens - 320]}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("split", ["odd", "token_by_token", "blocks"])
def test_any_split_gives_the_output_caches_and_blocks_of_one_prefill(case: str, split: str) -> None:
    sizes, tokens = CASES[case], 385
    qkvg = projections(tokens, sizes, seed=3)
    y, cache = feed(qkvg, [tokens], sizes, tokens, tokens)
    y_split, cache_split = feed(qkvg, _splits(tokens)[split], sizes, tokens, tokens)
    for whole, parts in zip(cache.tensors(), cache_split.tensors(), strict=True):
        assert_close(parts, whole)
    expected, _, _ = oracles.infllmv2_attention(qkvg, range(tokens), tokens, sizes)
    sure = torch.tensor(sure_rows(expected))
    assert_close(y_split[sure], y[sure])
    if sizes.dense_len == -1:
        whole_blocks = blocks_of_op(qkvg, cache, 0, 0, sizes)
        past = 0
        for chunk in _splits(tokens)[split]:
            part = blocks_of_op(qkvg[past : past + chunk], cache_split, 0, past, sizes)
            for i, taken in enumerate(part):
                assert not sure[past + i] or taken == whole_blocks[past + i]
            past += chunk


def test_rows_below_the_budget_of_blocks_are_equal_in_sparse_and_dense() -> None:
    sizes = replace(SMALL, topk=5, window_size=64)
    budget = sizes.taken_blocks * sizes.block_size
    qkvg = projections(budget + 100, sizes, seed=11)
    sparse, sparse_cache = feed(qkvg, [len(qkvg)], sizes, len(qkvg))
    dense, dense_cache = feed(qkvg, [len(qkvg)], replace(sizes, dense_len=10_000), len(qkvg))
    assert torch.equal(sparse[:budget], dense[:budget])
    assert not torch.allclose(sparse[budget:], dense[budget:], rtol=0, atol=1e-2)
    for a, b in zip(sparse_cache.tensors(), dense_cache.tensors(), strict=True):
        assert torch.equal(a, b), "the compressed caches are kept in dense mode too"


def test_decode_crosses_dense_len_where_the_context_reaches_it() -> None:
    sizes = replace(SMALL, dense_len=300)
    qkvg = projections(310, sizes, seed=2)
    y, cache = feed(qkvg, [290, *[1] * 20], sizes, 310)
    dense = feed(qkvg, [310], replace(sizes, dense_len=1000), 310)[0]
    sparse = feed(qkvg, [310], replace(sizes, dense_len=-1), 310)[0]
    # The context is 300 at the token of position 299.
    assert_close(y[:299], dense[:299])
    assert_close(y[299:], sparse[299:])
    assert not torch.allclose(dense[299:], sparse[299:], rtol=0, atol=1e-2)
    assert cache.k1.isfinite().all()


@pytest.mark.parametrize(("context", "sparse"), [(299, False), (300, True), (5000, True)])
def test_context_length_alone_decides_between_dense_and_sparse(context: int, sparse: bool) -> None:
    sizes = replace(SMALL, dense_len=300)
    qkvg = projections(290, sizes, seed=4)
    y = feed(qkvg, [290], sizes, 310, context)[0]
    assert torch.equal(y, feed(qkvg, [290], replace(sizes, dense_len=-1 if sparse else 10_000), 310)[0])


def test_scores_tied_at_the_cut_take_the_lower_block() -> None:
    """A key window that two neighbouring blocks share and both score by: equal bits, so the index decides."""
    sizes = replace(SMALL, num_heads=1, num_kv_heads=1, topk=2, window_size=0, init_blocks=0, head_dim=4, scale=1.0)
    tokens = 320
    qkvg = torch.zeros(tokens, 16)
    qkvg[:, 0] = 1.0
    # k1[11] averages tokens 88..103, across the border of blocks 2 and 3 at token 96, and wins in both.
    qkvg[88:104, 4] = 3.0
    qkvg[:, 8:12] = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(0))
    y, cache = feed(qkvg, [tokens], sizes, tokens)
    assert blocks_of_op(qkvg, cache, 0, 0, sizes)[-1] == [(2, 9)]
    expected, _, _ = oracles.infllmv2_attention(qkvg, [tokens - 1], tokens, sizes)
    assert expected[0].margins == (0.0,)
    assert expected[0].blocks == ((2, 9),)
    assert_close(y[-1], outputs(expected)[0])


@pytest.mark.parametrize("scale", [0.25, 40.0])
def test_equal_keys_tie_everywhere_and_take_the_lowest_blocks(scale: float) -> None:
    sizes = replace(SMALL, scale=scale, topk=4, window_size=32)
    qkvg = projections(300, sizes, seed=8)
    keys = slice(sizes.num_heads * sizes.head_dim, (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim)
    qkvg[:, keys] = qkvg[0, keys].round()
    y, cache = feed(qkvg, [300], sizes, 300)
    assert blocks_of_op(qkvg, cache, 0, 0, sizes)[-1] == [(0, 1, 2, 8, 9)] * 2
    assert_matches_oracle(qkvg, y, cache, 0, 0, 300, sizes, FLOAT32_TOLERANCE)


def test_overflowing_scores_are_clamped_and_stay_behind_forced_blocks() -> None:
    """Keys that turn around after the only k2 in sight: exp(a - m) is inf in fp32, which forced blocks are too."""
    sizes = replace(SMALL, num_heads=2, num_kv_heads=1, kernel_size=16, kernel_stride=8, block_size=16)
    sizes = replace(sizes, topk=2, window_size=0, init_blocks=0)
    qkvg = projections(95, sizes, seed=9)
    queries, keys = slice(0, 32), slice(32, 48)
    qkvg[:, queries] = 5.0
    qkvg[:64, keys] = -5.0
    qkvg[64:, keys] = 5.0
    y, cache = feed(qkvg, [95], sizes, 95)
    # Blocks 3 and 4 score by the windows of tokens 56..71 and 64..79, e^100 and e^200 above k2[0] of tokens 0..63.
    # Clamped they tie, block 3 wins, and the own block 5 keeps its place; unclamped they would push it out.
    assert blocks_of_op(qkvg, cache, 0, 0, sizes)[-1] == [(3, 5)]
    assert_matches_oracle(qkvg, y, cache, 0, 0, 95, sizes, FLOAT32_TOLERANCE)


def test_tiles_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory cuts a long chunk into tiles of rows; here into tiles of three."""
    qkvg = projections(200, SMALL, seed=13)
    y, _ = feed(qkvg, [200], SMALL, 200)
    monkeypatch.setattr(reference, "_SCORE_BUDGET_BYTES", 3 * SMALL.num_heads * 200 * qkvg.element_size())
    assert_close(feed(qkvg, [200], SMALL, 200)[0], y)


def test_in_place_form_refuses_a_full_cache_and_leaves_it_alone() -> None:
    qkvg = projections(8, SMALL, seed=0)[None]
    cache = Cache.empty(1, 70, SMALL)
    with pytest.raises(ShapeError, match=r"InfLLMv2Attention: past_length \[63\] plus 8 tokens"):
        infllmv2_attention_(qkvg, int32([63]), int32([71]), *cache.tensors(), **asdict(SMALL))
    with pytest.raises(ShapeError, match=r"InfLLMv2Attention: past_length \[-1\]"):
        infllmv2_attention_(qkvg, int32([-1]), int32([71]), *cache.tensors(), **asdict(SMALL))
    with pytest.raises(ShapeError, match=r"InfLLMv2Attention: context_length \[69\] is less"):
        infllmv2_attention_(qkvg, int32([62]), int32([69]), *cache.tensors(), **asdict(SMALL))
    assert all(tensor.isnan().all() for tensor in cache.tensors())
