"""InfLLMv2Attention: the Triton kernels, interpreted and on a GPU, against the reference in float64.

B batch, T tokens of the chunk, N tokens in the cache after it, G key heads, R query heads per key head, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch
from support.oracles import SparseSizes
from support.sparse_calls import Cache, feed, int32, projections, windows
from support.triton_interpreter import DEVICES, UNWRITTEN, run_kernels_on
from torch import Tensor

from sala_export.errors import UnsupportedError
from sala_export.ops.infllmv2_attention import reference

MARGIN = 1e-4
"""Relative margin at the cut above which fp32 must choose as exact arithmetic does."""
FLOOR = 1e-5
"""Error allowed beyond the roundings to X, of the largest value: fp32 sums in another order."""
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: `tokens` new ones after `past` tokens of each batch row; `context` defaults to their sum."""

    tokens: int
    past: tuple[int, ...]
    context: tuple[int, ...] = ()
    sizes: SparseSizes = BASE
    dtype: torch.dtype = torch.float32
    seed: int = 0
    ends: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(past + self.tokens for past in self.past))

    @property
    def contexts(self) -> tuple[int, ...]:
        return self.context or self.ends


CASES = {
    # Position 1151 ends a block, a k1 and a k2 window.
    "decode_sparse": Case(tokens=1, past=(1151, 700)),
    "decode_dense": Case(tokens=1, past=(0, 300), dtype=torch.bfloat16, sizes=replace(BASE, head_dim=64, num_heads=16)),
    "decode_mixed": Case(tokens=1, past=(1024, 300), dtype=torch.float16, sizes=replace(BASE, head_dim=128)),
    "sparse_beside_dense": Case(tokens=100, past=(1000, 37), sizes=replace(BASE, num_heads=16, num_kv_heads=1)),
    "sparse_by_later_tokens": Case(
        tokens=257, past=(0, 300), context=(257, 558), sizes=replace(BASE, num_heads=4, num_kv_heads=1)
    ),
    "whole_block": Case(
        tokens=64, past=(960, 0), dtype=torch.bfloat16, sizes=replace(BASE, head_dim=128, num_kv_heads=1, num_heads=16)
    ),
    "ragged_tile": Case(tokens=15, past=(1009, 1393), dtype=torch.bfloat16, sizes=replace(BASE, head_dim=64)),
    "small_blocks_and_groups": Case(tokens=33, past=(500, 3), sizes=SMALL),
    "blocks_of_several_tiles": Case(
        tokens=15, past=(1100, 77), sizes=replace(SMALL, block_size=128, window_size=128, topk=2)
    ),
    "two_tiles_of_blocks": Case(
        tokens=9,
        past=(2300, 2100),
        sizes=replace(SMALL, num_kv_heads=1, block_size=16, topk=60, init_blocks=3),
        dtype=torch.bfloat16,
    ),
    "own_block_only": Case(tokens=20, past=(300, 0), sizes=replace(SMALL, topk=1, window_size=0, init_blocks=0)),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A call and what the kernels made of it; caches are those after the call."""

    case: Case
    qkvg: Tensor
    y: Tensor
    cache: Cache
    exact: Cache
    """The caches after the reference, in float64."""
    chosen: Tensor
    """The workspace [B, G, T, chosen blocks]."""


def run_kernels(case: Case, sequences: Tensor | None = None, device: str = "interpreter") -> Outcome:
    """Fill the caches with the reference, then run the chunk with the kernels; `sequences` [B, N, width]."""
    sizes = case.sizes
    if sequences is None:
        sequences = torch.stack(
            [projections(max(case.ends), sizes, case.seed + b, case.dtype) for b in range(len(case.past))]
        )
    capacity = max(case.ends) + 7
    rows = []
    for sequence, past in zip(sequences, case.past, strict=True):
        empty = Cache.empty(1, capacity, sizes, case.dtype)
        # Dense, whatever the case says: only the caches are of interest.
        rows.append(feed(sequence, [past], replace(sizes, dense_len=capacity), capacity)[1] if past else empty)
    before = [torch.cat(parts) for parts in zip(*(row.tensors() for row in rows), strict=True)]
    qkvg = torch.stack([s[past:end] for s, past, end in zip(sequences, case.past, case.ends, strict=True)])
    lengths = int32(case.past), int32(case.contexts)
    exact = [cache.double() for cache in before]
    reference.infllmv2_attention(qkvg.double(), *lengths, *exact, **asdict(sizes))
    result = run_kernels_on(device, "infllmv2_attention", [qkvg, *lengths, *before], asdict(sizes))
    after = [result[f"{name}_cache_out"] for name in ("k", "v", "k1", "k2")]
    named = [dict(zip(("k", "v", "k1", "k2"), caches, strict=True)) for caches in (after, exact)]
    return Outcome(
        case=case, qkvg=qkvg, y=result["y"], cache=Cache(**named[0]), exact=Cache(**named[1]), chosen=result["chosen"]
    )


def heads_of(outcome: Outcome, row: int) -> tuple[Tensor, Tensor]:
    """Queries and gates of a batch row in float64, [G, R, T, D]."""
    sizes = outcome.case.sizes
    x = outcome.qkvg[row].double()
    group = sizes.num_heads // sizes.num_kv_heads
    ends = x[:, : sizes.num_heads * sizes.head_dim], x[:, -sizes.num_heads * sizes.head_dim :]
    q, gate = (part.view(len(x), sizes.num_kv_heads, group, sizes.head_dim).permute(1, 2, 0, 3) for part in ends)
    return q, gate


def assert_caches(outcome: Outcome, row: int) -> None:
    """Appended rows are copies, complete windows are means rounded once, and nothing else was written."""
    sizes, end = outcome.case.sizes, outcome.case.ends[row]
    cache, exact = outcome.cache, outcome.exact
    for ours, theirs in ((cache.k, exact.k), (cache.v, exact.v)):
        assert torch.equal(ours[row, :, :end].double(), theirs[row, :, :end])
        assert ours[row, :, end:].isnan().all()
    for ours, theirs, factor in ((cache.k1, exact.k1, 1), (cache.k2, exact.k2, 4)):
        count = windows(end, factor * sizes.kernel_size, factor * sizes.kernel_stride)
        assert_within(ours[row, :, :count], theirs[row, :, :count], torch.finfo(ours.dtype).eps / 2)
        assert ours[row, :, count:].isnan().all()


def assert_within(actual: Tensor, exact: Tensor, rounding: float) -> None:
    if exact.numel():
        limit = (rounding + FLOOR) * float(exact.abs().max())
        assert float((actual.double() - exact).abs().max()) <= limit


def taken_mask(outcome: Outcome, row: int) -> Tensor:
    """bool [G, T, blocks]: forced ones and those of the workspace, where none is forced, twice, or after -1."""
    case, sizes = outcome.case, outcome.case.sizes
    chosen = outcome.chosen[row].long()
    limit = sizes.topk - 1 - sizes.init_blocks
    assert chosen.shape[-1] == max(limit, 1)
    blocks = -(-case.ends[row] // sizes.block_size)
    block = torch.arange(blocks)
    own = torch.arange(case.past[row], case.ends[row])[:, None] // sizes.block_size
    forced = ((block < sizes.init_blocks) | (block >= own - sizes.window_size // sizes.block_size)) & (block <= own)
    forced = forced.expand(sizes.num_kv_heads, -1, -1)
    if limit == 0:
        return forced
    assert (chosen >= -1).all()
    assert ((chosen[..., 1:] == -1) | (chosen[..., :-1] >= 0)).all(), "-1 before a block"
    counts = torch.zeros(*chosen.shape[:-1], blocks + 1, dtype=torch.int64)
    counts.scatter_add_(-1, chosen + 1, torch.ones_like(chosen))
    assert (counts[..., 1:] + forced).max() == 1
    return (counts[..., 1:] == 1) | forced


def blocks_of(outcome: Outcome) -> list[list[list[int]]]:
    """Taken blocks of the first batch row, by key head and token."""
    return [[token.nonzero().flatten().tolist() for token in head] for head in taken_mask(outcome, 0)]


def assert_selection(outcome: Outcome, row: int) -> int:
    """The blocks are the reference's wherever rounding cannot change them; returns how many rows had a tie at the cut.

    The reference gets the kernels' own k1 and k2, so that only the selection is compared.
    """
    case, sizes = outcome.case, outcome.case.sizes
    names = ("scale", "kernel_size", "kernel_stride", "block_size", "topk", "window_size", "init_blocks")
    positions = torch.arange(case.past[row], case.ends[row])
    q, _ = heads_of(outcome, row)
    k1, k2 = outcome.cache.k1[row].double(), outcome.cache.k2[row].double()
    selection = reference.select_blocks(q, k1, k2, positions, **{name: asdict(sizes)[name] for name in names})
    ours = taken_mask(outcome, row)
    last_taken = selection.score.masked_fill(~selection.taken, math.inf).amin(-1)
    first_refused = selection.score.masked_fill(selection.taken, -math.inf).amax(-1)
    is_tie = last_taken == first_refused
    is_sure = is_tie | ((last_taken - first_refused) > MARGIN * last_taken) | (last_taken == math.inf)
    assert is_sure.double().mean() >= 0.95, "these inputs do not test the selection"
    assert torch.equal(ours[is_sure], selection.taken[is_sure])
    return int(is_tie.sum())


def assert_output(outcome: Outcome, row: int) -> None:
    """y is the gated attention over the blocks that the kernels took, to one rounding of the weights and one of y."""
    case, sizes, end = outcome.case, outcome.case.sizes, outcome.case.ends[row]
    positions = torch.arange(case.past[row], end)
    allowed = (torch.arange(end) <= positions[:, None])[None]
    if case.contexts[row] >= sizes.dense_len:
        allowed = allowed & taken_mask(outcome, row).repeat_interleave(sizes.block_size, dim=-1)[..., :end]
    else:
        assert (outcome.chosen[row] == UNWRITTEN).all()
    q, gate = heads_of(outcome, row)
    k, v = (cache[row, :, None, :end].double() for cache in (outcome.cache.k, outcome.cache.v))
    logits = (sizes.scale * q @ k.transpose(-1, -2)).masked_fill(~allowed[:, None], -math.inf)
    o = (logits.softmax(-1) @ v) * gate.sigmoid()
    exact = o.permute(2, 0, 1, 3).reshape(case.tokens, -1)
    assert_within(outcome.y[row], exact, 2 * torch.finfo(outcome.y.dtype).eps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernels_match_reference(name: str, device: str) -> None:
    outcome = run_kernels(CASES[name], device=device)
    for row in range(len(outcome.case.past)):
        assert_caches(outcome, row)
        assert_output(outcome, row)
        if outcome.case.contexts[row] >= outcome.case.sizes.dense_len:
            assert_selection(outcome, row)


def test_ties_between_neighbours_that_share_a_compressed_key_go_to_the_lower_block() -> None:
    outcome = run_kernels(
        Case(tokens=64, past=(1400,), sizes=replace(BASE, num_heads=16, num_kv_heads=1, topk=3, window_size=64))
    )
    assert assert_selection(outcome, 0) >= 4


def test_equal_keys_take_the_lowest_blocks() -> None:
    sizes = replace(BASE, topk=4, window_size=64)
    sequence = projections(900, sizes, seed=3)
    keys = slice(sizes.num_heads * sizes.head_dim, (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim)
    sequence[:, keys] = sequence[0, keys]
    outcome = run_kernels(Case(tokens=3, past=(897,), sizes=sizes), sequence[None])
    assert blocks_of(outcome) == [[[0, 1, 2, 13, 14]] * 3] * 2


def test_scores_beyond_the_largest_float_tie_and_take_the_lower_block() -> None:
    # 32 equal keys fill a k1 window and a quarter of a k2 window: exp(a - m) overflows for two blocks, 3 and 6.
    sizes = replace(BASE, num_heads=16, num_kv_heads=1, topk=2, window_size=64, dense_len=-1)
    sequence = torch.zeros(700, 2 * 17 * 32)
    sequence[:, : 16 * 32] = 1.0
    for start, value in ((208, 30.0), (400, 40.0)):
        sequence[start : start + 32, 16 * 32 : 17 * 32] = value
    outcome = run_kernels(Case(tokens=1, past=(699,), sizes=sizes), sequence[None])
    assert blocks_of(outcome) == [[[0, 9, 10]]]
    wider = run_kernels(Case(tokens=1, past=(699,), sizes=replace(sizes, topk=3)), sequence[None])
    assert blocks_of(wider) == [[[0, 3, 9, 10]]]


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
@pytest.mark.parametrize("excess", [40, 2**31 - 1 - 400])
def test_past_length_that_does_not_fit_leaves_everything_outside_alone(excess: int, dense_len: int) -> None:
    sizes, tokens, capacity = replace(SMALL, dense_len=dense_len), 20, 400
    first = capacity - tokens
    past = [capacity + excess, -excess]
    qkvg = torch.stack([projections(tokens, sizes, seed) for seed in range(2)])
    rows = [capacity, capacity, windows(capacity, 16, 8), windows(capacity, 64, 32)]
    before = [guarded(count, sizes, seed) for seed, count in enumerate(rows)]
    result = run_kernels_on(
        "interpreter", "infllmv2_attention", [qkvg, int32(past), int32([capacity] * 2), *before], asdict(sizes)
    )
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
