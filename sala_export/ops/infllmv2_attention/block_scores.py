"""The scores of blocks that are named one by one: exact, and the same bits wherever a block stands.

A turn takes the ratio + 1 k1 keys of a number of blocks, one of each block at a time. So the key that a block shares
with the next is multiplied twice, to the same bits: in the same place of the same product.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
"""The most that P counts (README.md)."""


@triton.jit
def keys_of_blocks(
    k1_ptr: tl.tensor,
    block: tl.tensor,
    m_block: tl.tensor,
    visible: tl.tensor,
    ratio: tl.constexpr,
    head_dim: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """The ratio + 1 k1 keys of blocks `block` [N]: [N, D] for each, the one before the block first.

    Blocks without `m_block`, and keys that are not visible, are zero.
    """
    o_d = tl.arange(0, head_dim)
    keys = ()
    for phase in tl.static_range(ratio + 1):
        index = ratio * block + phase - 1
        m_b = m_block & (index >= 0) & (index < visible)
        k1_row_ptr = k1_ptr + index[:, None].to(tl.int64) * head_dim + o_d[None, :]
        keys += (tl.load(k1_row_ptr, mask=m_b[:, None], other=0.0),)  # type: ignore[assignment]
    return keys


@triton.jit
def scores_of_blocks(
    q: tl.tensor,
    k1: tl.tuple,
    log_z: tl.tensor,
    block: tl.tensor,
    visible: tl.tensor,
    scale: tl.tensor,
    ratio: tl.constexpr,
) -> tl.tensor:
    """Scores [N] of blocks from their keys, as `keys_of_blocks` gives them; `scale` in units of log2."""
    score = tl.zeros((block.shape[0],), tl.float32)
    for phase in tl.static_range(ratio + 1):
        p = tl.exp2(scale * tl.dot(q, tl.trans(k1[phase]), input_precision="ieee") - log_z[:, None])
        index = ratio * block + phase - 1
        p = tl.minimum(tl.sum(p, axis=0), LARGEST_FLOAT)
        score = tl.maximum(score, tl.where((index >= 0) & (index < visible), p, 0.0))
    return score
