"""InfLLMv2Attention: the Triton kernels, interpreted and on a GPU, against the reference in float64.

B batch, T tokens of the chunk, N tokens in the cache after it, G key heads, R query heads per key head, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch
from support.oracles import SparseSizes
from support.sparse_calls import int32, projections, windows
from support.sparse_outcomes import Case, assert_caches, assert_output, assert_selection, blocks_of, run_kernels
from support.triton_interpreter import DEVICES, run_interpreted
from torch import Tensor

from sala_export.errors import UnsupportedError

GUARD = 64 * 32
"""Values on either side of a cache that no kernel may touch."""

BASE = SparseSizes(
    num_heads=32,
    num_kv_heads=2,
    head_dim=32,
    scale=1 / math.sqrt(32),
    kernel_size=32,
    kernel_stride=16,
    block_size=64,
    topk=4,
    window_size=256,
    init_blocks=1,
    dense_len=512,
)
SMALL = replace(BASE, num_heads=6, kernel_size=16, kernel_stride=8, block_size=32, window_size=64, dense_len=-1)

CASES = {
    # Position 1151 ends a block, a k1 and a k2 window.
    "decode_sparse": Case(tokens=1, past=(1151, 700), sizes=replace(BASE, head_dim=128)),
    "decode_dense": Case(tokens=1, past=(0, 300), dtype=torch.bfloat16, sizes=replace(BASE, head_dim=64, num_heads=16)),
    # Candidates to choose from, two where three may be taken, and a dense row.
    "decode_mixed": Case(
        tokens=1, past=(1024, 511, 300), dtype=torch.float16, sizes=replace(BASE, head_dim=128, topk=5)
    ),
    # With these sizes a k2 window may end where no k1 window does; the second row ends a k1 window alone, and the third
    # is one token short of a k2 window.
    "decode_ends_windows": Case(
        tokens=1,
        past=(415, 407, 414),
        sizes=replace(BASE, num_heads=4, num_kv_heads=1, kernel_size=24, window_size=64, dense_len=-1),
        dtype=torch.bfloat16,
    ),
    "sparse_beside_dense": Case(
        tokens=100,
        past=(1000, 37),
        sizes=replace(BASE, head_dim=128, num_heads=16, num_kv_heads=1),
        dtype=torch.float16,
    ),
    "sparse_by_later_tokens": Case(
        tokens=257, past=(0, 300), context=(257, 558), sizes=replace(BASE, num_heads=4, num_kv_heads=1)
    ),
    "whole_block": Case(
        tokens=64, past=(960, 0), dtype=torch.bfloat16, sizes=replace(BASE, head_dim=128, num_kv_heads=1, num_heads=16)
    ),
    "ragged_tile": Case(tokens=15, past=(1009, 1393), dtype=torch.bfloat16, sizes=replace(BASE, head_dim=64)),
    "small_blocks_and_groups": Case(tokens=33, past=(500, 3), sizes=SMALL),
    "blocks_of_several_tiles": Case(
        tokens=15, past=(1100, 77), sizes=replace(SMALL, head_dim=64, block_size=128, window_size=128, topk=2)
    ),
    "two_tiles_of_blocks": Case(
        tokens=9,
        past=(2300, 2100),
        sizes=replace(SMALL, num_kv_heads=1, block_size=16, topk=60, init_blocks=3),
        dtype=torch.bfloat16,
    ),
    "own_block_only": Case(tokens=20, past=(300, 0), sizes=replace(SMALL, topk=1, window_size=0, init_blocks=0)),
    # Three initial blocks and the window of two before the own one: apart, touching and overlapping.
    "initial_meets_window": Case(tokens=100, past=(90, 0), sizes=replace(SMALL, init_blocks=3)),
    "decode_initial_meets_window": Case(tokens=1, past=(130, 10), sizes=replace(SMALL, init_blocks=3)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernels_match_reference(name: str, device: str) -> None:
    outcome = run_kernels(CASES[name], device=device)
    for row in range(len(outcome.case.past)):
        assert_caches(outcome, row)
        assert_output(outcome, row)
        if outcome.case.contexts[row] >= outcome.case.sizes.dense_len:
            assert_selection(outcome, row)


@pytest.mark.parametrize(("tokens", "past", "ties"), [(64, (1400,), 4), (1, (1401, 1204), 2)])
def test_ties_between_neighbours_that_share_a_compressed_key_go_to_the_lower_block(
    tokens: int, past: tuple[int, ...], ties: int
) -> None:
    sizes = replace(BASE, num_heads=16, num_kv_heads=1, topk=3, window_size=64)
    outcome = run_kernels(Case(tokens=tokens, past=past, sizes=sizes))
    assert sum(assert_selection(outcome, row) for row in range(len(past))) >= ties


@pytest.mark.parametrize("tokens", [3, 1])
def test_equal_keys_take_the_lowest_blocks(tokens: int) -> None:
    sizes = replace(BASE, topk=4, window_size=64)
    sequence = projections(900, sizes, seed=3)
    keys = slice(sizes.num_heads * sizes.head_dim, (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim)
    sequence[:, keys] = sequence[0, keys]
    outcome = run_kernels(Case(tokens=tokens, past=(900 - tokens,), sizes=sizes), sequence[None])
    assert blocks_of(outcome) == [[[0, 1, 2, 13, 14]] * tokens] * 2


@pytest.mark.parametrize("tokens", [2, 1])
def test_scores_beyond_the_largest_float_tie_and_take_the_lower_block(tokens: int) -> None:
    # 32 equal keys fill a k1 window and a quarter of a k2 window: exp(a - m) overflows for two blocks, 3 and 6.
    sizes = replace(BASE, num_heads=16, num_kv_heads=1, topk=2, window_size=64, dense_len=-1)
    sequence = torch.zeros(700, 2 * 17 * 32)
    sequence[:, : 16 * 32] = 1.0
    for start, value in ((208, 30.0), (400, 40.0)):
        sequence[start : start + 32, 16 * 32 : 17 * 32] = value
    case = Case(tokens=tokens, past=(700 - tokens,), sizes=sizes)
    assert blocks_of(run_kernels(case, sequence[None])) == [[[0, 9, 10]] * tokens]
    wider = run_kernels(replace(case, sizes=replace(sizes, topk=3)), sequence[None])
    assert blocks_of(wider) == [[[0, 3, 9, 10]] * tokens]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [15, 1])
@pytest.mark.parametrize("dense_len", [-1, 4096], ids=["sparse", "dense"])
def test_float16_products_and_sums_beyond_its_range_match_reference(tokens: int, dense_len: int, device: str) -> None:
    """q k and the sums of 128 keys exceed 65504; the logits do not, for the scale is small."""
    sizes = replace(BASE, num_heads=16, num_kv_heads=1, scale=BASE.scale / 1e4, topk=3, window_size=64)
    sequence = projections(900, sizes, seed=5)
    q, k = sequence[:, : 16 * 32], sequence[:, 16 * 32 : 17 * 32]
    q *= 10
    k *= 1000
    assert (q[:, :32] * k).sum(-1).abs().max() > 65504
    assert k.unfold(0, 128, 64).sum(-1).abs().max() > 65504
    case = Case(tokens=tokens, past=(900 - tokens,), sizes=replace(sizes, dense_len=dense_len), dtype=torch.float16)
    outcome = run_kernels(case, sequence[None].half(), device=device)
    assert_caches(outcome, 0)
    assert_output(outcome, 0)
    if dense_len < 0:
        assert_selection(outcome, 0)


def test_groups_wider_than_a_tile_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"fdiv\(num_heads, num_kv_heads\) is 32, kernels need <= 16"):
        run_kernels(Case(tokens=1, past=(3,), sizes=replace(BASE, num_kv_heads=1)))


def guarded(rows: int, sizes: SparseSizes, seed: int) -> Tensor:
    """A cache [2, G, rows, D] of finite values amid `GUARD` values of NaN on either side, in one storage."""
    shape = (2, sizes.num_kv_heads, rows, sizes.head_dim)
    storage = torch.full((math.prod(shape) + 2 * GUARD,), math.nan)
    cache = storage[GUARD:-GUARD].view(shape)
    cache.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return cache


@pytest.mark.parametrize("dense_len", [-1, 2**31 - 1])
@pytest.mark.parametrize(("excess", "tokens"), [(40, 20), (2**31 - 1 - 400, 20), (2**31 - 1 - 400, 1)])
def test_past_length_that_does_not_fit_leaves_everything_outside_alone(
    excess: int, dense_len: int, tokens: int
) -> None:
    sizes, capacity = replace(SMALL, dense_len=dense_len), 400
    first = capacity - tokens
    past = [capacity + excess, -excess]
    qkvg = torch.stack([projections(tokens, sizes, seed) for seed in range(2)])
    rows = [capacity, capacity, windows(capacity, 16, 8), windows(capacity, 64, 32)]
    before = [guarded(count, sizes, seed) for seed, count in enumerate(rows)]
    inputs = [qkvg, int32(past), int32([capacity] * 2), *before]
    result = run_interpreted("infllmv2_attention", inputs, asdict(sizes))
    after = [result[f"{name}_cache_out"] for name in ("k", "v", "k1", "k2")]
    for cache in after:
        storage = torch.empty(0).set_(cache.untyped_storage())
        assert len(storage) == cache.numel() + 2 * GUARD
        assert storage[:GUARD].isnan().all()
        assert storage[-GUARD:].isnan().all()
    for ours, theirs in zip(after[:2], before[:2], strict=True):
        assert torch.equal(ours[0, :, :first], theirs[0, :, :first])
        assert torch.equal(ours[1, :, tokens:], theirs[1, :, tokens:])
    for ours, theirs, count in zip(after[2:], before[2:], (windows(first, 16, 8), windows(first, 64, 32)), strict=True):
        assert torch.equal(ours[0, :, :count], theirs[0, :, :count])
        assert torch.equal(ours[1, :, 1:], theirs[1, :, 1:])
    assert result["y"].isfinite().all(), "the guards were read"
