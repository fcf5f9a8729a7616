"""Running selection of the best blocks inside a Triton kernel, exact in the presence of ties.

A candidate is one int64 key: the bits of its score, which is not negative, above the bitwise complement of its index.
Such keys compare like (score, then lower index first), all differ, and are 0 or more. A list [R, N] holds the best of R
independent rows in no order: the first `limit` slots are in use, the others hold keys that nothing exceeds. Slots not
filled yet hold different negative keys, the lowest first, so that filled slots come first.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-(2**62))
"""Below every key of a list."""
_UNUSED = tl.constexpr(2**63 - 1)


@triton.jit
def block_keys(score: tl.tensor, block: tl.tensor) -> tl.tensor:
    """Keys of fp32 scores >= 0 (+inf included) and int32 block indices >= 0, of any shapes that broadcast."""
    bits = score.to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << 32) | (0x7FFFFFFF - block).to(tl.int64)


@triton.jit
def key_blocks(keys: tl.tensor) -> tl.tensor:
    """Block indices of `keys`; -1 for those of slots that hold none."""
    is_block = (keys >= 0) & (keys < _UNUSED)
    return tl.where(is_block, 0x7FFFFFFF - (keys & 0x7FFFFFFF), -1).to(tl.int32)


@triton.jit
def empty_list(limit: tl.tensor, ROWS: tl.constexpr, SLOTS: tl.constexpr) -> tl.tensor:
    """A list [ROWS, SLOTS] of no blocks."""
    slot = tl.arange(0, SLOTS)
    keys = tl.where(slot < limit, (slot - SLOTS).to(tl.int64), _UNUSED)
    return tl.broadcast_to(keys[None, :], (ROWS, SLOTS))


@triton.jit
def insert(best: tl.tensor, candidates: tl.tensor) -> tl.tensor:
    """The list `best` [R, N] with those keys of `candidates` [R, M] that belong in it; NO_KEY never does.

    One turn puts the highest remaining candidate of every row in the place of the row's lowest key. A row of n
    candidates in random order makes about limit (1 + ln(n / limit)) turns over all its tiles: most tiles need few.
    """
    lowest = tl.min(best, axis=1)
    while tl.max((candidates > lowest[:, None]).to(tl.int32)) > 0:
        highest = tl.max(candidates, axis=1)
        best = tl.where((best == lowest[:, None]) & (highest > lowest)[:, None], highest[:, None], best)
        candidates = tl.where(candidates == highest[:, None], NO_KEY, candidates)
        lowest = tl.min(best, axis=1)
    return best
