"""Stage 2 of InfLLM-v2 prefill, launch by launch: attend alone, and both gather kernels on lists made by hand.

B batch, T tokens of the chunk, G key heads, R query heads per key head, D head dim.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from support.findings import assert_passed, largest_error
from support.oracles import SparseSizes
from support.sparse_launches import (
    LaunchCase,
    TokenLists,
    after_each_launch,
    amid_nan,
    attention,
    heads_of,
    list_workspaces,
    lists_with_union,
)
from torch import Tensor

from sala_export.ops.infllmv2_attention import tiles

UNION, ONE = "infllmv2_gather_union_kernel", "infllmv2_gather_kernel"
FLOOR = 1e-5
"""Error allowed beyond the roundings to X, of the largest value: fp32 sums in another order."""
SIZES = SparseSizes(
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    scale=0.2,
    kernel_size=32,
    kernel_stride=16,
    block_size=64,
    topk=7,
    window_size=64,
    init_blocks=1,
    dense_len=-1,
)
CHOSEN = 5
"""Blocks that a token of `SIZES` chooses."""


def chosen_count(position: int, sizes: SparseSizes) -> int:
    """Blocks between the initial and the local ones, as far as a token may choose them."""
    candidates = range(sizes.init_blocks, position // sizes.block_size - sizes.window_size // sizes.block_size)
    return min(len(candidates), sizes.topk - 1 - sizes.init_blocks)


def make_case(
    sizes: SparseSizes, past: list[int], tokens: int, dtype: torch.dtype, sm: int, context: list[int] | None = None
) -> LaunchCase:
    """A call with random projections and caches and nothing from launches before."""
    # Blocks of any size are allowed with windows of that stride, and no launch here reads compressed keys.
    sizes = replace(sizes, kernel_size=2 * sizes.block_size, kernel_stride=sizes.block_size)
    generator = torch.Generator().manual_seed(1)
    capacity = max(past) + tokens + 5
    width = 2 * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim
    shape = (len(past), sizes.num_kv_heads, capacity, sizes.head_dim)
    qkvg, k, v = (
        torch.randn(extents, generator=generator).to(dtype) for extents in ((len(past), tokens, width), shape, shape)
    )
    ends = [p + tokens for p in past]
    return LaunchCase(sizes=sizes, past=past, context=context or ends, qkvg=qkvg, k=k, v=v, given={}, sm=sm)


def with_lists(case: LaunchCase, lists: TokenLists) -> LaunchCase:
    """The case with lists, and a state that attend has left; blocks in no list of a key head hold NaN."""
    sizes, generator = case.sizes, torch.Generator().manual_seed(2)
    batch, tokens, _ = case.qkvg.shape
    y = torch.randn(batch, tokens, sizes.num_heads * sizes.head_dim, generator=generator).to(case.qkvg.dtype)
    log_sum = torch.full((batch, sizes.num_kv_heads, tokens, 16), math.nan)
    k, v = (torch.full_like(cache, math.nan) for cache in (case.k, case.v))
    for b, row in enumerate(lists):
        for g, head in enumerate(row):
            rows = block_rows(sorted({block for own in head for block in own}), sizes)
            k[b, g, rows], v[b, g, rows] = case.k[b, g, rows], case.v[b, g, rows]
            for t, own in enumerate(head):
                if own:
                    log_sum[b, g, t, :3] = 4 * torch.randn(3, generator=generator) + 3
    given = {"y": y, "log_sum": log_sum, **list_workspaces(lists, sizes, tiles.UNION_TOKENS[case.sm])}
    return replace(case, k=k, v=v, given=given)


def block_rows(blocks: list[int], sizes: SparseSizes) -> list[int]:
    return [row for block in blocks for row in range(block * sizes.block_size, (block + 1) * sizes.block_size)]


def gathered(case: LaunchCase, lists: TokenLists) -> Tensor:
    """What y should be after both launches, in float64."""
    sizes, y = case.sizes, case.given["y"].double()
    exact = y.view(*y.shape[:2], sizes.num_kv_heads, -1, sizes.head_dim).clone()
    for b, row in enumerate(lists):
        for g, head in enumerate(row):
            for t, own in enumerate(head):
                if own:
                    o, log_sum = attention(case, b, g, t, block_rows(list(own), sizes))
                    before = case.given["log_sum"][b, g, t, : len(o)].double()
                    share = torch.sigmoid((log_sum - before) * math.log(2))[:, None]
                    exact[b, t, g] = (share * o + (1 - share) * exact[b, t, g]) * heads_of(case, b, g, t)[1].sigmoid()
    return exact.view_as(y)


def assert_gathered(case: LaunchCase, lists: TokenLists, y: Tensor) -> None:
    assert_passed([largest_error("y", y, gathered(case, lists), 2 * torch.finfo(y.dtype).eps + FLOOR)])


def union_sizes(sm: int) -> list[int]:
    """Unions of a tile: no overlap, one entry too many for the union kernel, the most that it serves, all equal."""
    every = tiles.UNION_TOKENS[sm] * CHOSEN
    most = every * tiles.GATHER[sm].constexprs["UNION_LIMIT"] // 100
    return [every, most + 1, most, (most + CHOSEN) // 2, CHOSEN]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Tiles of every overlap in one call."""

    case: LaunchCase
    lists: TokenLists
    by_union: list[bool]
    """For each tile: the union kernel serves it."""


def tiles_of_every_overlap(sizes: SparseSizes, sm: int, dtype: torch.dtype) -> Gathered:
    """Tiles with the unions of `union_sizes` in turn, then one token; the second key head's lists are other blocks."""
    per_tile = tiles.UNION_TOKENS[sm]
    unions = union_sizes(sm)
    past = 25 * sizes.block_size + 3
    case = make_case(sizes, [past], len(unions) * per_tile + 1, dtype, sm)
    candidates = range(sizes.init_blocks, 24)
    lists = [
        [
            chosen
            for i, size in enumerate(unions)
            for chosen in lists_with_union(per_tile, CHOSEN, size, candidates, seed=10 * i + g)
        ]
        + lists_with_union(1, CHOSEN, CHOSEN, candidates, seed=g)
        for g in range(sizes.num_kv_heads)
    ]
    # One token alone: its union is its list.
    by_union = [False, False, True, True, True, False]
    return Gathered(case=with_lists(case, [lists]), lists=[lists], by_union=by_union)


# Blocks of one turn or two, of less than a turn, of a turn and a half.
@pytest.mark.parametrize(
    ("sm", "dtype", "block_size"),
    [
        (86, torch.bfloat16, 64),
        (86, torch.float32, 48),
        (90, torch.float16, 64),
        (90, torch.bfloat16, 48),
        (120, torch.float32, 64),
        (120, torch.float16, 16),
    ],
)
def test_each_tile_is_gathered_by_the_kernel_in_charge_at_every_overlap(
    sm: int, dtype: torch.dtype, block_size: int
) -> None:
    call = tiles_of_every_overlap(replace(SIZES, block_size=block_size, window_size=block_size), sm, dtype)
    before = call.case.given["y"]
    after_one, after_both = (after["y"] for after in after_each_launch(call.case, [ONE, UNION]))
    for i, by_union in enumerate(call.by_union):
        tile = slice(i * tiles.UNION_TOKENS[sm], (i + 1) * tiles.UNION_TOKENS[sm])
        assert torch.equal(after_one[:, tile], before[:, tile]) == by_union, i
        assert torch.equal(after_both[:, tile], after_one[:, tile]) == (not by_union), i
    assert_gathered(call.case, call.lists, after_both)


@pytest.mark.parametrize("sm", [86, 120])
def test_only_sparse_tokens_with_chosen_blocks_go_on(sm: int) -> None:
    """The first token of a context that chooses a block is the second of a tile; another batch row is dense."""
    sizes = replace(SIZES, block_size=16, window_size=16, topk=5, dense_len=100)
    past, tokens = [3 * 16 - 1, 200], 21
    case = make_case(sizes, past, tokens, torch.float32, sm, context=[100, 99])
    lists = [[[list(range(1, 1 + chosen_count(47 + t, sizes))) for t in range(tokens)] for _ in range(2)]]
    assert [len(own) for own in lists[0][0]] == [0, *[1] * 16, *[2] * 4]
    lists.append([[[]] * tokens] * 2)
    case = with_lists(case, lists)
    y = after_each_launch(case, [UNION, ONE])[-1]["y"]
    assert torch.equal(y[0, 0], case.given["y"][0, 0])
    assert torch.equal(y[1], case.given["y"][1])
    assert_gathered(case, lists, y)


def test_what_neighbours_choose_changes_no_bit_of_a_token() -> None:
    sm = 86
    outputs = []
    for others in ([5, 6, 9, 11, 20], [1, 2, 3, 11, 30]):
        sizes = replace(SIZES, block_size=16, window_size=16)
        lists = [[[[4, 5, 11, 20, 22], others, others, others]] * 2]
        case = with_lists(make_case(sizes, [40 * 16], 4, torch.bfloat16, sm), lists)
        case = replace(case, k=make_case(sizes, [40 * 16], 4, torch.bfloat16, sm).k)
        (after,) = after_each_launch(case, [UNION])
        assert not torch.equal(after["y"], case.given["y"])
        outputs.append(after["y"])
    assert torch.equal(outputs[0][:, 0], outputs[1][:, 0])
    assert not torch.equal(outputs[0][:, 1], outputs[1][:, 1])


@pytest.mark.parametrize("size", [-(2**31), 0, 6, 2**31 - 1])
def test_no_content_of_the_lists_leads_out_of_the_caches(size: int) -> None:
    """The caches end within a block. Six entries are too many for the union kernel, the other sizes are not."""
    sizes = replace(SIZES, topk=5, block_size=48, window_size=0, init_blocks=0)
    case = with_lists(make_case(sizes, [399], 6, torch.float32, sm=120), [[[[1, 2, 3, 4]] * 6] * 2])
    wild = torch.tensor([2**31 - 1, -(2**31), 2**26 + 3, -1, 8 << 2 | 3, 8, 3 << 2 | 3], dtype=torch.int32)
    given = {**case.given, "union_size": torch.full_like(case.given["union_size"], size)}
    for name in ("chosen", "union_blocks"):
        given[name] = wild.repeat(given[name].numel())[: given[name].numel()].view_as(given[name])
    k, v = (amid_nan(torch.randn(1, 2, 399 + 6, sizes.head_dim)) for _ in range(2))
    y = after_each_launch(replace(case, k=k, v=v, given=given), [UNION, ONE])[-1]["y"]
    assert not torch.equal(y, given["y"])
    assert y.isfinite().all(), "the guards were read"


DENSE = 10**6
"""A dense_len that no context here reaches."""


@pytest.mark.parametrize(
    ("past", "tokens", "sizes"),
    [
        # Tiles of 8 tokens: within a block, across a border of blocks, a ragged one.
        (10 * 64 - 9, 19, {"window_size": 256}),
        # Blocks of less than a tile of keys; initial blocks that end within a tile.
        (40 * 16 - 5, 9, {"block_size": 16, "window_size": 80, "init_blocks": 3}),
        (20 * 48 - 3, 9, {"block_size": 48, "window_size": 144, "init_blocks": 3}),
        (9 * 128 - 4, 8, {"block_size": 128, "window_size": 128, "init_blocks": 2, "scale": -0.3}),
        # Initial blocks that meet the window, and that reach beyond it.
        (100, 40, {"block_size": 32, "window_size": 64, "init_blocks": 2}),
        (60, 40, {"block_size": 16, "window_size": 16, "init_blocks": 4, "topk": 5}),
        (0, 70, {"block_size": 16, "window_size": 0, "init_blocks": 0, "topk": 1}),
        (0, 130, {"dense_len": DENSE}),
        (317, 9, {"dense_len": DENSE, "scale": -0.3}),
    ],
)
def test_forced_blocks_are_attended_to_at_every_border(past: int, tokens: int, sizes: dict[str, int]) -> None:
    """y and its log2-sum-exp are of forced blocks alone, gated where no chosen ones follow; other keys are NaN."""
    case = make_case(replace(SIZES, **sizes), [past], tokens, torch.float32, sm=120)
    rows = [forced_rows(past + t, case.sizes) for t in range(tokens)]
    needed = sorted(set().union(*rows))
    k, v = (torch.full_like(cache, math.nan) for cache in (case.k, case.v))
    k[:, :, needed], v[:, :, needed] = case.k[:, :, needed], case.v[:, :, needed]
    case = replace(case, k=k, v=v)
    (after,) = after_each_launch(case, ["infllmv2_attend_kernel"])
    y, log_sum = after["y"].view(tokens, 2, 3, 64), after["log_sum"][0]
    exact, exact_log_sum = y.double(), log_sum[..., :3].double()
    for t, g in itertools.product(range(tokens), range(2)):
        o, exact_log_sum[g, t] = attention(case, 0, g, t, rows[t])
        goes_on = case.sizes.dense_len < DENSE and chosen_count(past + t, case.sizes) > 0
        exact[t, g] = o if goes_on else o * heads_of(case, 0, g, t)[1].sigmoid()
        if not goes_on:
            assert log_sum[g, t].isnan().all()
            exact_log_sum[g, t] = math.nan
    known = ~exact_log_sum.isnan()
    assert_passed(
        [
            largest_error("y", y, exact, FLOOR),
            largest_error("log_sum", log_sum[..., :3][known], exact_log_sum[known], FLOOR),
        ]
    )


def forced_rows(position: int, sizes: SparseSizes) -> list[int]:
    """Keys up to a position that lie in its initial or local blocks; all of them in dense mode."""
    first_local = position // sizes.block_size - sizes.window_size // sizes.block_size
    return [
        key
        for key in range(position + 1)
        if sizes.dense_len == DENSE or not sizes.init_blocks <= key // sizes.block_size < first_local
    ]
