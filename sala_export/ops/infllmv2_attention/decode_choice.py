"""The best blocks of one token, from their scores in memory, by a whole program in registers.

A score is finite and 0 or more, so that its bits, read as int32, compare as it does; `EMPTY` is below them all. Equal
scores go to the lower index. COLUMNS scores are searched at once. Beyond those, two passes over the memory leave the
few that can be among the best, and the search goes on with them.
"""

from __future__ import annotations

import triton
import triton.language as tl

EMPTY = tl.constexpr(-1)
"""Bits of a place without a score."""


@triton.jit
def score_bits(score: tl.tensor, is_score: tl.tensor) -> tl.tensor:
    """int32 bits of fp32 scores, `EMPTY` where `is_score` is false."""
    return tl.where(is_score, score.to(tl.int32, bitcast=True), EMPTY)


@triton.jit
def cut(bits: tl.tensor, limit: tl.tensor, SLOTS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where the `limit` best of `bits` [N] end: `lowest`, and a number `above` of those that are higher.

    At least `limit` of N, a multiple of SLOTS, hold a score; 1 <= limit <= SLOTS. The best are all above `lowest`, and
    of those equal to it the first `limit - above`, which may be more than there are. The search cuts an interval in
    three, because two counts take one sum, and ends early where exactly `limit` scores reach a value.
    """
    # SLOTS scores reach the least of the maxima of SLOTS columns, if none is empty.
    maxima = tl.max(tl.reshape(bits, (bits.shape[0] // SLOTS, SLOTS)), axis=0)
    lowest = tl.maximum(tl.min(maxima, axis=0), 0)
    beyond = tl.max(maxima, axis=0) + 1
    above = tl.full((), 0, tl.int32)
    reaching = tl.full((), -1, tl.int32)
    while (beyond - lowest > 1) & (reaching != limit):
        third = tl.maximum((beyond - lowest) // 3, 1)
        lower, higher = lowest + third, beyond - third
        counts = tl.sum(tl.where(bits >= higher, 65537, tl.where(bits >= lower, 1, 0)), axis=0)
        reach_lower, reach_higher = counts & 0xFFFF, counts >> 16
        if reach_higher >= limit:
            lowest, reaching = higher, reach_higher
        elif reach_lower >= limit:
            lowest, reaching = lower, reach_lower
            beyond, above = higher, reach_higher
        else:
            beyond, above = lower, reach_lower
    return lowest, above


@triton.jit
def _counts(bits: tl.tensor, lowest: tl.tensor) -> tl.tensor:
    """1 for a score above `lowest`, 2^16 for one equal to it: sums of up to 2^15 of them hold both numbers."""
    return tl.where(bits > lowest, 1, tl.where(bits == lowest, 65536, 0))


@triton.jit
def best_in_order(bits: tl.tensor, limit: tl.tensor, SLOTS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Which of `bits` [N] are the `limit` best, and the place of each among them in the order of N; as `cut`."""
    lowest, above = cut(bits, limit, SLOTS)
    order = tl.cumsum(_counts(bits, lowest), 0)
    equal, left = order >> 16, limit - above
    is_best = (bits > lowest) | ((bits == lowest) & (equal <= left))
    return is_best, (order & 0xFFFF) + tl.minimum(equal, left) - 1


@triton.jit
def padded_scores(C: tl.tensor, block_size: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tensor:
    """Places for scores of a cache of C keys: whole turns of COLUMNS, which are loaded without a mask."""
    return tl.cdiv(tl.cdiv(C, block_size), COLUMNS) * COLUMNS


@triton.jit
def likely_places(C: tl.tensor, block_size: tl.constexpr, limit: tl.tensor, COLUMNS: tl.constexpr) -> tl.tensor:
    """Places for what `likely_best` keeps of the scores of a cache of C keys, whole turns as well."""
    return tl.cdiv(limit * (tl.cdiv(tl.cdiv(C, block_size), COLUMNS) + 1), COLUMNS) * COLUMNS


@triton.jit
def likely_best(
    scores_ptr: tl.tensor,
    likely_scores_ptr: tl.tensor,
    likely_ptr: tl.tensor,
    candidates: tl.tensor,
    limit: tl.tensor,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Bits and indices [COLUMNS] of scores, in the order of indices, that have the `limit` best of all among them.

    Each turn keeps fewer: one is enough for COLUMNS^2 / SLOTS - COLUMNS candidates, 4 million tokens of SALA. Scores
    and indices go through memory of the program's own, `likely_scores_ptr` and `likely_ptr`.
    """
    tl.static_assert(COLUMNS >= 8 * SLOTS, "a turn might not keep fewer than there were")
    count = _keep_likely(scores_ptr, likely_scores_ptr, likely_ptr, candidates, limit, True, COLUMNS, SLOTS)
    while count > COLUMNS:
        count = _keep_likely(likely_scores_ptr, likely_scores_ptr, likely_ptr, count, limit, False, COLUMNS, SLOTS)
    place = tl.arange(0, COLUMNS)
    return score_bits(tl.load(likely_scores_ptr + place), place < count), tl.load(likely_ptr + place)


@triton.jit
def _keep_likely(
    scores_ptr: tl.tensor,
    likely_scores_ptr: tl.tensor,
    likely_ptr: tl.tensor,
    count: tl.tensor,
    limit: tl.tensor,
    IS_FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """Keep those of `count` scores that may be among the best, in order, with their indices; returns their number.

    The `limit`-th of the maxima of COLUMNS columns is reached by `limit` scores. What is above it is kept, and the
    first `limit` of those equal to it: limit * (count / COLUMNS + 1) at most. Unless IS_FIRST, the indices are those
    at `likely_ptr`.
    """
    column = tl.arange(0, COLUMNS)
    maxima = tl.full((COLUMNS,), EMPTY, tl.int32)
    for start in range(0, count, COLUMNS):
        maxima = tl.maximum(maxima, score_bits(tl.load(scores_ptr + start + column), start + column < count))
    lowest, _ = cut(maxima, limit, SLOTS)
    above = tl.full((), 0, tl.int32)
    equal = tl.full((), 0, tl.int32)
    for start in range(0, count, COLUMNS):
        score = tl.load(scores_ptr + start + column)
        index = start + column if IS_FIRST else tl.load(likely_ptr + start + column)
        bits = score_bits(score, start + column < count)
        counts = _counts(bits, lowest)
        order = tl.cumsum(counts, 0)
        equal_order = equal + (order >> 16)
        place = above + (order & 0xFFFF) + tl.minimum(equal_order, limit) - 1
        is_kept = (bits > lowest) | ((bits == lowest) & (equal_order <= limit))
        # No place is beyond this turn's, but other threads have to have read theirs.
        tl.debug_barrier()
        tl.store(likely_scores_ptr + place, score, mask=is_kept)
        tl.store(likely_ptr + place, index, mask=is_kept)
        total = tl.sum(counts, axis=0)
        above += total & 0xFFFF
        equal += total >> 16
    tl.debug_barrier()
    return above + tl.minimum(equal, limit)
