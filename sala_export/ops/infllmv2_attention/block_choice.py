"""The best blocks of each token among scores in memory, exact in the presence of ties, and the lists that follow.

Scores are fp32, finite and not negative, so that their int32 bits compare as they do; a block that is no candidate of
a token has a negative number. A tile [PARTS, ROWS, LANES] holds PARTS * LANES columns of ROWS tokens, lane by lane and
then part by part: with as many warps as rows, Triton gives each row to a warp of its own, which reduces and counts
without a word to the others.

The choice takes two passes over the scores. The first keeps the maxima of groups of columns. The limit-th largest of
them is a lower bound of the limit-th best score, because it takes that many different blocks. The second pass lists
the blocks that reach it, which in random order are a few more than are chosen, and the exact threshold is that of
these. Equal scores go to the lower block without any search, because lists are in ascending order.

Threads of a program read here what others of it wrote to memory, and a barrier stands between.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
"""Columns of a part: one for each thread of a warp."""
GROUP_PARTS = tl.constexpr(8)
"""Parts of the tile of group maxima: 256 groups."""
_BITS = tl.constexpr(31)
_BOUND_BITS = tl.constexpr(22)
"""Of a score's bits, those in which the lower bound is sought: the exponent and 14 of the mantissa."""


@triton.jit
def choose_blocks(
    score_ptr: tl.tensor,
    stride: tl.tensor,
    survivor_ptr: tl.tensor,
    survivor_stride: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    limit: tl.tensor,
    chosen_ptr: tl.tensor,
    rows: tl.tensor,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SURVIVOR_SLOTS: tl.constexpr,
) -> None:
    """Write the `limit` best of blocks first .. end - 1 of each row in ascending order, then -1.

    Args: `score_ptr`, ROWS rows of fp32, `stride` apart, block b in column b; `survivor_ptr`, as many rows of int32,
        `survivor_stride` apart, which is SURVIVOR_SLOTS or all the columns that there are; `chosen_ptr`, rows of
        max(limit, 1) int32, of which the first `rows` are written; 1 <= `limit` <= SLOTS.
    """
    bound = _lower_bound(score_ptr, stride, first, end, limit, ROWS)
    count = list_survivors(score_ptr, stride, survivor_ptr, survivor_stride, first, end, bound, ROWS)
    tl.debug_barrier()
    if tl.max(count, axis=0) <= survivor_stride:
        choose_survivors(
            score_ptr,
            stride,
            survivor_ptr,
            survivor_stride,
            count,
            first,
            end,
            limit,
            chosen_ptr,
            rows,
            ROWS,
            SLOTS,
            SURVIVOR_SLOTS,
        )
    else:
        m_row = tl.arange(0, ROWS) < rows
        threshold = _searched_threshold(score_ptr, stride, first, end, limit, ROWS)
        left = limit - _count_in_memory(score_ptr, stride, first, end, threshold + 1, ROWS)
        above = tl.zeros((ROWS,), tl.int32)
        equal = tl.zeros((ROWS,), tl.int32)
        for start in range(first, end, GROUP_PARTS * LANES):
            block = start + _columns(GROUP_PARTS)
            score = _scores(score_ptr, stride, block, end, ROWS)
            above, equal = _store_chosen(score, block, threshold, left, above, equal, limit, chosen_ptr, m_row, ROWS)
        _store_no_blocks(chosen_ptr, above + tl.minimum(equal, left), limit, m_row, ROWS, SLOTS)


@triton.jit
def choose_survivors(
    score_ptr: tl.tensor,
    stride: tl.tensor,
    survivor_ptr: tl.tensor,
    survivor_stride: tl.tensor,
    count: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    limit: tl.tensor,
    chosen_ptr: tl.tensor,
    rows: tl.tensor,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SURVIVOR_SLOTS: tl.constexpr,
) -> None:
    """`choose_blocks` among the first `count` [ROWS] of each row's survivors, in ascending order, which have room."""
    m_row = tl.arange(0, ROWS) < rows
    row = tl.arange(0, ROWS)[None, :, None]
    none = tl.zeros((ROWS,), tl.int32)
    place = _columns(SURVIVOR_SLOTS // LANES)
    m_place = place < count[None, :, None]
    block = tl.load(survivor_ptr + row * survivor_stride + place, mask=m_place, other=0)
    block = tl.minimum(tl.maximum(block, first), end - 1)
    score = tl.load(score_ptr + row * stride + block, mask=m_place, other=-1.0).to(tl.int32, bitcast=True)
    threshold = _nth_largest(score, limit, _BITS)
    left = limit - _count(score > threshold[None, :, None])
    above, equal = _store_chosen(score, block, threshold, left, none, none, limit, chosen_ptr, m_row, ROWS)
    _store_no_blocks(chosen_ptr, above + tl.minimum(equal, left), limit, m_row, ROWS, SLOTS)


@triton.jit
def _store_no_blocks(
    chosen_ptr: tl.tensor,
    count: tl.tensor,
    limit: tl.tensor,
    m_row: tl.tensor,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Write -1 from place `count` [ROWS] of each row on."""
    slot = tl.arange(0, SLOTS)[None, :]
    is_unused = (slot >= count[:, None]) & (slot < limit)
    to_slot = tl.arange(0, ROWS)[:, None] * tl.maximum(limit, 1) + slot
    tl.store(chosen_ptr + to_slot, tl.full((ROWS, SLOTS), -1, tl.int32), mask=m_row[:, None] & is_unused)


@triton.jit
def store_unions(
    chosen_ptr: tl.tensor,
    union_blocks_ptr: tl.tensor,
    union_size_ptr: tl.tensor,
    rows: tl.tensor,
    limit: tl.tensor,
    ROWS: tl.constexpr,
    UNION_T: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Write the union of the lists of every UNION_T tokens, ascending, as block << UNION_T | mask, and its size.

    The lists are merged: the place of an entry is the number of lower ones in each of the lists, which a binary search
    finds. Where several tokens have a block, the first keeps it.

    Args: `chosen_ptr`, rows of max(limit, 1) blocks in ascending order, then -1; `union_blocks_ptr`, rows of SLOTS, of
        which a tile takes all of its tokens'; `union_size_ptr`, one number a row, written at the first of a tile;
        the first `rows` of all of them are there.
    """
    width = tl.maximum(limit, 1)
    row = tl.arange(0, ROWS)[:, None]
    slot = tl.arange(0, SLOTS)[None, :]
    in_tile = row % UNION_T
    block = tl.load(chosen_ptr + row * width + slot, mask=(row < rows) & (slot < limit), other=-1)
    m_block = block >= 0
    mask = tl.full((ROWS, SLOTS), 1, tl.int32) << in_tile
    place = slot + tl.zeros((ROWS, SLOTS), tl.int32)
    is_first = m_block
    for i in tl.static_range(1, UNION_T):
        other = row - in_tile + (in_tile + i) % UNION_T
        below = _blocks_below(chosen_ptr + other * width, block, tl.where(other < rows, limit, 0), SLOTS)
        found = tl.load(chosen_ptr + other * width + below, mask=m_block & (other < rows) & (below < limit), other=-1)
        is_shared = m_block & (found == block)
        is_earlier = other < row
        mask |= tl.where(is_shared, 1, 0) << (other % UNION_T)
        place += below + tl.where(is_shared & is_earlier, 1, 0)
        is_first &= ~(is_shared & is_earlier)
    # The tile's own rows hold the merged lists, with holes, until they hold the union.
    to_place = row // UNION_T * (UNION_T * SLOTS) + place
    tl.store(union_blocks_ptr + to_place, tl.where(is_first, (block << UNION_T) | mask, -1), mask=m_block)
    listed = tl.sum(m_block.to(tl.int32), axis=1)
    tl.debug_barrier()

    TILES: tl.constexpr = ROWS // UNION_T
    tile = tl.arange(0, TILES)[:, None]
    place = tl.arange(0, UNION_T * SLOTS)[None, :]
    merged = tl.sum(tl.reshape(listed, (TILES, UNION_T)), axis=1)
    to_tile = union_blocks_ptr + tile * (UNION_T * SLOTS)
    entry = tl.load(to_tile + place, mask=place < merged[:, None], other=-1)
    tl.debug_barrier()
    kept = (entry >= 0).to(tl.int32)
    to_entry = tl.cumsum(kept, axis=1) - kept
    tl.store(to_tile + to_entry, entry, mask=entry >= 0)
    to_first = tl.arange(0, TILES) * UNION_T
    tl.store(union_size_ptr + to_first, tl.sum(kept, axis=1), mask=to_first < rows)


@triton.jit
def _columns(PARTS: tl.constexpr) -> tl.tensor:
    """0 .. PARTS * LANES - 1 in the order of a tile, [PARTS, 1, LANES]."""
    return tl.arange(0, PARTS)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]


@triton.jit
def _scores(score_ptr: tl.tensor, stride: tl.tensor, block: tl.tensor, end: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """Bits of the scores of blocks `block` [PARTS, 1, LANES], a tile; negative from `end` on."""
    row = tl.arange(0, ROWS)[None, :, None]
    return tl.load(score_ptr + row * stride + block, mask=block < end, other=-1.0).to(tl.int32, bitcast=True)


@triton.jit
def _count(is_counted: tl.tensor) -> tl.tensor:
    """How many of each row of a tile, [ROWS]."""
    return tl.sum(tl.sum(is_counted.to(tl.int32), axis=0), axis=1)


@triton.jit
def _nth_largest(values: tl.tensor, n: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The n-th largest of each row of an int32 tile, equal ones counted apart, [ROWS]; 0 if fewer are positive.

    Bit by bit, the upper `BITS` of 31; the others are 0.
    """
    threshold = tl.zeros((values.shape[1],), tl.int32)
    for i in range(BITS):
        trial = threshold | (tl.full((), 1, tl.int32) << (30 - i))
        threshold = tl.where(_count(values >= trial[None, :, None]) >= n, trial, threshold)
    return threshold


@triton.jit
def _lower_bound(
    score_ptr: tl.tensor, stride: tl.tensor, first: tl.tensor, end: tl.tensor, limit: tl.tensor, ROWS: tl.constexpr
) -> tl.tensor:
    """A number that the bits of at least `limit` scores of each row reach, [ROWS]; 0 where fewer are above 0."""
    groups = tl.full((GROUP_PARTS, ROWS, LANES), -1, tl.int32)
    # Two tiles a turn, whose loads are under way together.
    for start in range(first, end, 2 * GROUP_PARTS * LANES):
        block = start + _columns(GROUP_PARTS)
        score = _scores(score_ptr, stride, block, end, ROWS)
        second = _scores(score_ptr, stride, block + GROUP_PARTS * LANES, end, ROWS)
        groups = tl.maximum(groups, tl.maximum(score, second))
    return _nth_largest(groups, limit, _BOUND_BITS)


@triton.jit
def _before(values: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Sums of what stands before each value in its row of an int32 tile, and of each row, [ROWS]."""
    parts = tl.sum(values, axis=2)
    # Each thread adds up the parts of its own lane: as a matrix they would change hands first.
    every = tl.broadcast_to(parts[:, :, None], values.shape)
    return tl.cumsum(every, axis=0) - every + tl.cumsum(values, axis=2) - values, tl.sum(parts, axis=0)


@triton.jit
def list_survivors(
    score_ptr: tl.tensor,
    stride: tl.tensor,
    survivor_ptr: tl.tensor,
    survivor_stride: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    bound: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Write the blocks of each row whose bits reach `bound` [ROWS] >= 0, ascending, `survivor_stride` of them at most.

    Returns: how many reach it, [ROWS].
    """
    row = tl.arange(0, ROWS)[None, :, None]
    count = tl.zeros((ROWS,), tl.int32)
    block = first + _columns(GROUP_PARTS)
    score = _scores(score_ptr, stride, block, end, ROWS)
    for _ in range(first, end, GROUP_PARTS * LANES):
        # The next tile is under way while this one is listed.
        next_block = block + GROUP_PARTS * LANES
        next_score = _scores(score_ptr, stride, next_block, end, ROWS)
        is_survivor = score >= bound[None, :, None]
        place, found = _before(is_survivor.to(tl.int32))
        place += count[None, :, None]
        count += found
        tl.store(
            survivor_ptr + row * survivor_stride + place,
            tl.broadcast_to(block, place.shape),
            mask=is_survivor & (place < survivor_stride),
        )
        block, score = next_block, next_score
    return count


@triton.jit
def end_lists(
    survivor_ptr: tl.tensor,
    survivor_stride: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
    SURVIVOR_SLOTS: tl.constexpr,
) -> None:
    """Write -1 after the `count` [ROWS] survivors of each row, as far as its list goes."""
    place = _columns(SURVIVOR_SLOTS // LANES)
    to_place = tl.arange(0, ROWS)[None, :, None] * survivor_stride + place
    is_after = (place >= count[None, :, None]) & (place < survivor_stride)
    tl.store(survivor_ptr + to_place, tl.full(is_after.shape, -1, tl.int32), mask=is_after)


@triton.jit
def _store_chosen(
    score: tl.tensor,
    block: tl.tensor,
    threshold: tl.tensor,
    left: tl.tensor,
    above: tl.tensor,
    equal: tl.tensor,
    limit: tl.tensor,
    chosen_ptr: tl.tensor,
    m_row: tl.tensor,
    ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Write the chosen blocks of a tile: those above `threshold` [ROWS], and the first `left` [ROWS] equal to it.

    Args: bits of the scores, [PARTS, ROWS, LANES], and `block` that broadcasts to it; `above` and `equal` [ROWS], how
        many there were in the tiles before this one.
    Returns: `above` and `equal` after this tile.
    """
    is_above = score > threshold[None, :, None]
    is_equal = score == threshold[None, :, None]
    # Two counts in one number: a tile has fewer than 2^15 columns.
    before, found = _before(is_above.to(tl.int32) | (is_equal.to(tl.int32) << 16))
    equal_before = equal[None, :, None] + (before >> 16)
    is_chosen = is_above | (is_equal & (equal_before < left[None, :, None]))
    place = above[None, :, None] + (before & 0xFFFF) + tl.minimum(equal_before, left[None, :, None])
    to_place = tl.arange(0, ROWS)[None, :, None] * tl.maximum(limit, 1) + place
    is_stored = is_chosen & m_row[None, :, None] & (place < limit)
    tl.store(chosen_ptr + to_place, tl.broadcast_to(block, place.shape), mask=is_stored)
    return above + (found & 0xFFFF), equal + (found >> 16)


@triton.jit
def _count_in_memory(
    score_ptr: tl.tensor, stride: tl.tensor, first: tl.tensor, end: tl.tensor, least: tl.tensor, ROWS: tl.constexpr
) -> tl.tensor:
    """How many scores of each row have bits of `least` [ROWS] or more, [ROWS]."""
    count = tl.zeros((ROWS, LANES), tl.int32)
    for start in range(first, end, GROUP_PARTS * LANES):
        score = _scores(score_ptr, stride, start + _columns(GROUP_PARTS), end, ROWS)
        count += tl.sum((score >= least[None, :, None]).to(tl.int32), axis=0)
    return tl.sum(count, axis=1)


@triton.jit
def _searched_threshold(
    score_ptr: tl.tensor, stride: tl.tensor, first: tl.tensor, end: tl.tensor, limit: tl.tensor, ROWS: tl.constexpr
) -> tl.tensor:
    """Bits of the limit-th best score of each row, [ROWS], 0 if fewer are above 0: a pass over all scores for each bit.

    What takes so long are more scores that are all but equal than there is room for survivors.
    """
    threshold = tl.zeros((ROWS,), tl.int32)
    for i in range(_BITS):
        trial = threshold | (tl.full((), 1, tl.int32) << (30 - i))
        reached = _count_in_memory(score_ptr, stride, first, end, trial, ROWS) >= limit
        threshold = tl.where(reached, trial, threshold)
    return threshold


@triton.jit
def _blocks_below(list_ptr: tl.tensor, block: tl.tensor, size: tl.tensor, SLOTS: tl.constexpr) -> tl.tensor:
    """How many entries of a list are below `block`, for any shapes that broadcast; SLOTS is a power of two.

    Args: pointers to lists in ascending order of `size` places, of which the last may hold -1.
    """
    below = tl.zeros(block.shape, tl.int32)
    for i in tl.static_range(31):
        if (SLOTS >> i) > 0:
            last = below + ((SLOTS >> i) - 1)
            entry = tl.load(list_ptr + last, mask=last < size, other=-1)
            below = tl.where((entry >= 0) & (entry < block), last + 1, below)
    return below
