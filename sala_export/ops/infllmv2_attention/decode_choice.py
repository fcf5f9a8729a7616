"""The best blocks of one token, from their scores in memory, by a whole program in registers.

A score is finite and 0 or more, so that its bits, read as int32, compare as it does; `EMPTY` is below them all. Equal
scores go to the lower index. COLUMNS scores are searched at once. Beyond those, two passes over the memory leave the few
that can be among the best, and the search goes on with them.
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
    of those equal to it the first `limit - above`, which may be more than there are. The search halves an interval,
    and ends early where exactly `limit` scores reach a value.
    """
    # SLOTS scores reach the least of the maxima of SLOTS columns, if none is empty.
    maxima = tl.max(tl.reshape(bits, (bits.shape[0] // SLOTS, SLOTS)), axis=0)
    lowest = tl.maximum(tl.min(maxima, axis=0), 0)
    beyond = tl.max(maxima, axis=0) + 1
    above = tl.full((), 0, tl.int32)
    reaching = tl.full((), -1, tl.int32)
    while (beyond - lowest > 1) & (reaching != limit):
        middle = lowest + (beyond - lowest) // 2
        count = tl.sum((bits >= middle).to(tl.int32), axis=0)
        is_enough = count >= limit
        lowest = tl.where(is_enough, middle, lowest)
        reaching = tl.where(is_enough, count, reaching)
        beyond = tl.where(is_enough, beyond, middle)
        above = tl.where(is_enough, above, count)
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
def keep_likely(
    scores_ptr: tl.tensor,
    likely_ptr: tl.tensor,
    candidates: tl.tensor,
    limit: tl.tensor,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """Indices at `likely_ptr`, ascending, that have the `limit` best scores of all among them; returns their number.

    A turn takes the maxima of COLUMNS columns, and keeps what is above the `limit`-th of them, and the first `limit` of
    those equal to it: limit * (turns of a pass + 1) at most. It ends with at most COLUMNS; one turn does for
    COLUMNS^2 / (2 SLOTS) scores. `likely_ptr` is the program's own.
    """
    tl.static_assert(COLUMNS >= 8 * SLOTS, "a turn would not always keep fewer than there were")
    column = tl.arange(0, COLUMNS)
    count = candidates
    while count > COLUMNS:
        is_all = count == candidates
        maxima = tl.full((COLUMNS,), EMPTY, tl.int32)
        for start in range(0, count, COLUMNS):
            index = _indices(likely_ptr, start + column, count, candidates, is_all)
            score = tl.load(scores_ptr + index)
            maxima = tl.maximum(maxima, score_bits(score, start + column < count))
        lowest, _ = cut(maxima, limit, SLOTS)
        kept_above = tl.full((), 0, tl.int32)
        kept_equal = tl.full((), 0, tl.int32)
        for start in range(0, count, COLUMNS):
            index = _indices(likely_ptr, start + column, count, candidates, is_all)
            bits = score_bits(tl.load(scores_ptr + index), start + column < count)
            counts = _counts(bits, lowest)
            order = tl.cumsum(counts, 0)
            equal = kept_equal + (order >> 16)
            place = kept_above + (order & 0xFFFF) + tl.minimum(equal, limit) - 1
            # A place is never beyond what this turn has read; all threads have to have read it.
            tl.debug_barrier()
            tl.store(likely_ptr + place, index, mask=(bits > lowest) | ((bits == lowest) & (equal <= limit)))
            total = tl.sum(counts, axis=0)
            kept_above += total & 0xFFFF
            kept_equal += total >> 16
        tl.debug_barrier()
        count = kept_above + tl.minimum(kept_equal, limit)
    return count


@triton.jit
def _indices(
    likely_ptr: tl.tensor, place: tl.tensor, count: tl.tensor, candidates: tl.tensor, is_all: tl.tensor
) -> tl.tensor:
    """Indices of scores at places of a list of `count`, which is that of all candidates or the one in memory."""
    listed = tl.load(likely_ptr + place, mask=(place < count) & (is_all == 0), other=0)
    # Clamped, so that no content of the list leads out of the scores.
    return tl.minimum(tl.maximum(tl.where(is_all, place, listed), 0), candidates - 1)


@triton.jit
def load_likely(
    scores_ptr: tl.tensor, likely_ptr: tl.tensor, count: tl.tensor, candidates: tl.tensor, COLUMNS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Bits and indices [COLUMNS] of the `count` scores that `keep_likely` left."""
    place = tl.arange(0, COLUMNS)
    index = _indices(likely_ptr, place, count, candidates, count < 0)
    return score_bits(tl.load(scores_ptr + index), place < count), index
