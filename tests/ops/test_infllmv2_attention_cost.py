"""The account of the InfLLMv2Attention kernels against the project's floors and sums over tokens."""

from __future__ import annotations

import pytest

from sala_export.ops.infllmv2_attention import tiles
from sala_export.ops.infllmv2_attention.cost import costs, floor
from sala_export.ops.infllmv2_attention.schema import PUBLISHED

CHUNK = 8192


UNION, ONE = "infllmv2_gather_union_kernel", "infllmv2_gather_kernel"


def by_name(**sizes: float) -> dict[str, object]:
    return {cost.kernel: cost for cost in costs(PUBLISHED, **sizes)}


def prompt(tokens: int) -> list[dict[str, object]]:
    return [by_name(batch=1, tokens=CHUNK, past_length=start) for start in range(0, tokens, CHUNK)]


def test_selection_of_128k_tokens_has_the_known_floor() -> None:
    """26 ms on an RTX 5090, 36 on an RTX A6000: 5.5 TFLOP at 209.5 and 154.8 TFLOP/s."""
    least = sum(
        2 * 32 * 128 * max(0, (t - 31) // 16 + 1) + 2 * 32 * 128 * max(0, (t - 127) // 64 + 1) for t in range(1 << 17)
    )
    assert least / 209.5e12 == pytest.approx(26e-3, rel=0.02)
    computed = sum(chunk["infllmv2_select_kernel"].operations for chunk in prompt(1 << 17))
    assert computed == pytest.approx(least, rel=0.03), "tiles of tokens see keys that only their last token sees"


@pytest.mark.parametrize("sm", [86, 90, 120])
def test_selection_moves_nothing_that_grows_with_the_square_of_the_context(sm: int) -> None:
    """Per chunk: queries, the compressed keys once, the chosen blocks and as many in unions; no scores."""
    first, second = (
        by_name(batch=1, tokens=CHUNK, past_length=past, sm=sm)["infllmv2_select_kernel"] for past in (1 << 17, 1 << 20)
    )
    sums = 0 if sm == 90 else CHUNK * 2 * 16 * 4
    assert second.bytes_written - sums == first.bytes_written == 2 * CHUNK * 2 * 62 * 4
    queries, key = CHUNK * 32 * 128 * 2, 2 * 128 * 2
    codes = 0 if sm == 90 else 2 * (128 + 4)
    compressed = second.bytes_read - queries
    assert compressed == pytest.approx(((1 << 20) + CHUNK) * ((key + codes) / 16 + key / 64), rel=0.001)


@pytest.mark.parametrize("sm", [86, 90, 120])
def test_compressed_keys_are_asked_for_once_per_tile_of_tokens(sm: int) -> None:
    select = by_name(batch=1, tokens=CHUNK, past_length=1 << 20, sm=sm)["infllmv2_select_kernel"]
    middle = (1 << 20) + CHUNK / 2
    keys = CHUNK / 8 * middle * (512 / 64 + (512 if sm == 90 else 264) / 16)
    scores = CHUNK * 2 * middle / 64 * (3 if sm == 90 else 4) * 4
    # Five keys of each of 62 blocks and 296 survivors, in turns of 32 blocks.
    exact = 0 if sm == 90 else CHUNK * (64 + 320) * 5 * 512
    assert select.bytes_from_cache == pytest.approx(keys + scores + exact, rel=0.01)
    assert scores < 0.2 * keys


def test_bounds_take_the_place_of_four_fifths_of_the_products_far_into_the_context() -> None:
    sizes = {"batch": 1, "tokens": CHUNK, "past_length": 1 << 20}
    by_scores, by_bounds = (by_name(**sizes, sm=sm)["infllmv2_select_kernel"] for sm in (90, 120))
    assert by_scores.int8_operations == 0
    exact = 2 * CHUNK * 2 * 16 * 128 * 384 * 5
    assert by_bounds.operations + by_bounds.int8_operations == by_scores.operations + exact
    assert by_bounds.int8_operations == pytest.approx(0.8 * by_scores.operations, rel=0.01)
    codes = by_name(**sizes, sm=120)["infllmv2_quantize_keys_kernel"]
    assert codes.bytes_written == pytest.approx(((1 << 20) + CHUNK) / 16 * 264, rel=0.001)
    assert "infllmv2_quantize_keys_kernel" not in by_name(**sizes, sm=90)


@pytest.mark.parametrize("sm", tiles.BOUNDED_BLOCKS)
def test_bounds_begin_where_a_tile_has_so_many_candidates(sm: int) -> None:
    """34 blocks of 64 tokens are forced: the initial one, 32 of the window, and the own one."""
    least = tiles.BOUNDED_BLOCKS[sm]
    first = 64 * (least + 33)
    for past, tokens, is_bounded in ((first, 64, True), (first - 64, 64, False), (first, 63, False)):
        select = by_name(batch=1, tokens=tokens, past_length=past, sm=sm)["infllmv2_select_kernel"]
        assert (select.int8_operations > 0) == (is_bounded and least > 0)


def test_local_part_has_tiles_of_128_rows() -> None:
    for sm, tile in tiles.ATTEND.items():
        assert tile.constexprs["BLOCK_T"] * tiles.CONSTANTS["GROUP_ROWS"] == 128, sm
    for sm, tile in tiles.SELECT.items():
        assert tile.constexprs["BLOCK_T"] == tiles.SELECT_TOKENS, "scratch has so many rows for a program"
        assert tile.constexprs["BLOCK_T"] * tiles.CONSTANTS["GROUP_ROWS"] == 128, sm


def test_attention_far_into_the_context_is_that_of_96_blocks() -> None:
    """0.48 us per token and layer on an RTX 5090: 4 x 32 x 128 x 6144 operations."""
    names = by_name(batch=1, tokens=CHUNK, past_length=1 << 20)
    computed = names["infllmv2_attend_kernel"].operations + names["infllmv2_gather_kernel"].operations
    least = CHUNK * 4 * 32 * 128 * 96 * 64
    assert least / CHUNK / 209.5e12 == pytest.approx(0.48e-6, rel=0.02)
    # The own block is half seen on average.
    assert 0.99 < computed / least < 1.03
    # 33 local blocks and the initial one with full tiles, 62 gathered.
    assert names["infllmv2_gather_kernel"].operations == CHUNK * 4 * 32 * 128 * 62 * 64


@pytest.mark.parametrize("sm", tiles.GATHER_UNION)
def test_each_tile_is_gathered_by_one_kernel_in_the_account(sm: int) -> None:
    """Sums over tokens far into the context, where each chooses 62 blocks."""
    tokens, limit = tiles.UNION_TOKENS[sm], tiles.GATHER_UNION[sm].constexprs["UNION_LIMIT"]
    per_block = 2 * 4 * 16 * 128 * 64
    sizes = {"batch": 1, "tokens": CHUNK, "past_length": 1 << 20, "sm": sm}
    apart = by_name(**sizes)
    assert (apart[UNION].operations, apart[UNION].bytes_read, apart[UNION].bytes_written) == (0, 0, 0)
    assert apart[ONE].operations == CHUNK * 62 * per_block
    rows, lists = CHUNK * 32 * 128 * 2, 2 * (CHUNK * (62 + 16) + CHUNK // tokens) * 4
    assert apart[ONE].bytes_read == 3 * rows + lists + 2 * ((1 << 20) + CHUNK) * 512

    entries = 62 * tokens * limit // 100
    shared = by_name(**sizes, union_share=entries / (62 * tokens))
    assert shared[ONE].operations == shared[ONE].bytes_read == shared[ONE].bytes_written == 0
    assert shared[UNION].operations == CHUNK * entries * per_block
    # A token and key head take 32 KiB of each block from the cache, an entry of a union as many for all its tokens.
    assert apart[ONE].bytes_from_cache == CHUNK * 2 * 62 * (32 << 10)
    assert shared[UNION].bytes_from_cache == CHUNK // tokens * 2 * entries * (32 << 10)
    assert by_name(**sizes, union_share=(entries + 1) / (62 * tokens)) == apart
    alike = by_name(**sizes, union_share=0)
    assert alike[UNION].operations == apart[ONE].operations
    assert alike[UNION].bytes_written == apart[ONE].bytes_written == rows


def test_union_is_not_larger_than_what_there_is_to_choose_from() -> None:
    """The last 64 tokens of 6464 have 101 blocks: the own one, 32 of the window, the initial one and 67 candidates."""
    attributes = {**PUBLISHED, "dense_len": 0}
    found = {x.kernel: x for x in costs(attributes, batch=1, tokens=64, past_length=6400)}
    assert found[ONE].operations == 0
    assert found[UNION].operations == 64 * 67 * 2 * 4 * 16 * 128 * 64


def test_decode_reads_compressed_keys_and_taken_blocks_once() -> None:
    context = 1 << 20
    found = costs(PUBLISHED, batch=1, tokens=1, past_length=context - 1)
    least = floor(PUBLISHED, batch=1, tokens=1, past_length=context - 1)
    assert sum(cost.bytes_read for cost in found) < 1.2 * least.bytes_read
    assert least.bytes_read == pytest.approx((context / 16 + context / 64 + 2 * 6112) * 512, rel=0.01)


def test_decode_writes_its_token_the_keys_that_it_completes_and_a_score_for_each_candidate() -> None:
    names = by_name(batch=1, tokens=1, past_length=(1 << 17) - 1)
    row, sums = 2 * 128 * 2, 2 * 64 * 16 * 4
    assert names["infllmv2_decode_normalise_kernel"].bytes_written == 4 * row + sums
    # The own block, 32 local ones and an initial one are no candidates.
    assert names["infllmv2_decode_score_kernel"].bytes_written == 2 * (2048 - 34) * 4
    after = by_name(batch=1, tokens=1, past_length=1 << 17)["infllmv2_decode_normalise_kernel"]
    assert after.bytes_written == 2 * row + sums


@pytest.mark.parametrize(
    "sizes", [(1, 1, 0), (1, 100, 0), (2, 8191, 0), (1, 8192, 0), (1, 1, 5000), (3, 64, 20000), (2, 100, 400000)]
)
def test_kernels_are_never_below_the_floor(sizes: tuple[int, int, int]) -> None:
    batch, tokens, past = sizes
    found = costs(PUBLISHED, batch=batch, tokens=tokens, past_length=past)
    least = floor(PUBLISHED, batch=batch, tokens=tokens, past_length=past)
    assert all(min(cost.bytes_read, cost.bytes_written, cost.operations) >= 0 for cost in found)
    assert sum(cost.operations for cost in found) >= least.operations
    assert sum(cost.int8_operations for cost in found) >= least.int8_operations
    assert sum(cost.bytes_written for cost in found) >= least.bytes_written
