"""Running selection of the best blocks inside a Triton kernel, exact in the presence of ties.

A candidate is one int64 key: the bits of its score, which is not negative, above the bitwise complement of its index.
Such keys compare like (score, then lower index first), all differ, and -1 is below every one of them. R rows, N a power
of two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_keys(score: tl.tensor, block: tl.tensor) -> tl.tensor:
    """Keys [R, N] of scores [R, N] >= 0 (+inf included), fp32, and block indices [N] >= 0, int32."""
    bits = score.to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << 32) | (0x7FFFFFFF - block).to(tl.int64)[None, :]


@triton.jit
def key_blocks(keys: tl.tensor) -> tl.tensor:
    """Block indices of `keys`; -1 for the key -1."""
    return tl.where(keys < 0, -1, 0x7FFFFFFF - (keys & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def merge_best(best: tl.tensor, candidates: tl.tensor) -> tl.tensor:
    """The N largest of `best` [R, N], in falling order, and `candidates` [R, N], in any order; in falling order.

    Bitonic: of a falling and a rising run, the larger of each facing pair are the N largest, and form a sequence that
    log2 N rounds of exchanges sort. The rounds are loops, not unrolled code: unrolled (as in `tl.sort`), assembling the
    kernel takes half a minute, and running it in Triton's interpreter a second per call.
    """
    length: tl.constexpr = candidates.shape[1]
    run = 2
    while run <= length:
        distance = run // 2
        while distance > 0:
            candidates = _exchange(candidates, distance, run)
            distance //= 2
        run *= 2
    best = tl.maximum(best, candidates)
    distance = length // 2
    while distance > 0:
        best = -_exchange(-best, distance, length)
        distance //= 2
    return best


@triton.jit
def _exchange(keys: tl.tensor, distance: tl.tensor, run: tl.tensor) -> tl.tensor:
    """Order all pairs of keys [R, N] that are `distance` apart; runs of `run` keys rise and fall in turn."""
    place = tl.arange(0, keys.shape[1])[None, :]
    other = tl.gather(keys, tl.broadcast_to(place ^ distance, keys.shape), axis=1)
    wants_larger = ((place & run) != 0) != ((place & distance) != 0)
    return tl.where(wants_larger, tl.maximum(keys, other), tl.minimum(keys, other))
