"""The scores of all blocks for a tile of tokens, or upper bounds of them: products of whole tiles of keys.

R rows = BLOCK_T tokens x GROUP_ROWS heads of one key head, D head dim. Logits are in units of log2: one multiply-add
and one hardware exp2 for each.

The k1 pass computes K1 Q^T, keys by rows: a thread then holds heads of a token and keys of a block side by side, and
pools them in registers. Which rows and columns these are is free, and tiles.py says what suits the product of each
architecture. A turn takes one block of each of a number of ranges, and the next turn the block after it, so that the
key that two blocks share stays in the thread that needs it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .block_scores import LARGEST_FLOAT
from .positions import log2_scale
from .quantize_keys_kernel import bounded_exponents


@triton.jit
def log2_sum_exp(
    q: tl.tensor,
    k2_ptr: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    visible: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> tl.tensor:
    """log2 of the sum of e^(scale q.k2) [R] over those of rows first .. end - 1 of k2 that are below `visible` [R].

    -inf where there is none.
    """
    scale = log2_scale(scale)
    visible = tl.minimum(visible, end)
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    # Whole tiles that every row sees need no mask. Their largest product is the largest logit for a `scale` >= 0.
    clear = first + tl.maximum(tl.min(visible, axis=0) - first, 0) // BLOCK_B * BLOCK_B
    clear = tl.where(scale >= 0, clear, first)
    for start in range(first, clear, BLOCK_B):
        largest, total = _add_keys(q, k2_ptr, start, visible, end, scale, largest, total, head_dim, BLOCK_B, False)
    for start in range(clear, end, BLOCK_B):
        largest, total = _add_keys(q, k2_ptr, start, visible, end, scale, largest, total, head_dim, BLOCK_B, True)
    return tl.where(total > 0, largest + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))


@triton.jit
def _add_keys(
    q: tl.tensor,
    k2_ptr: tl.tensor,
    start: tl.tensor,
    visible: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_B: tl.constexpr,
    IS_MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Largest logit and sum [R] after BLOCK_B more keys, all of them visible unless IS_MASKED."""
    row = start + tl.arange(0, BLOCK_B)
    k2_row_ptr = k2_ptr + row[:, None].to(tl.int64) * head_dim + tl.arange(0, head_dim)[None, :]
    if IS_MASKED:
        k2 = tl.load(k2_row_ptr, mask=(row < end)[:, None], other=0.0)
        b = scale * tl.dot(q, tl.trans(k2), input_precision="ieee")
        b = tl.where(row[None, :] < visible[:, None], b, float("-inf"))
        larger = tl.maximum(largest, tl.max(b, axis=1))
    else:
        product = tl.dot(q, tl.trans(tl.load(k2_row_ptr)), input_precision="ieee")
        # The multiplication goes into that of the difference below, not into one for each element before the maximum.
        larger = tl.maximum(largest, scale * tl.max(product, axis=1))
        b = scale * product
    # Rows that see nothing yet have -inf here, whose difference with itself is NaN.
    shift = tl.where(larger == float("-inf"), 0.0, larger)
    return larger, total * tl.exp2(largest - shift) + tl.sum(tl.exp2(b - shift[:, None]), axis=1)


@triton.jit
def column_rows(
    R: tl.constexpr, GROUP_ROWS: tl.constexpr, NEAR_TOKENS: tl.constexpr, NEAR_HEADS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Token and head [R] of each column of K1 Q^T: NEAR_HEADS heads of each of NEAR_TOKENS tokens, and so on."""
    o_r = tl.arange(0, R)
    token = o_r // (NEAR_TOKENS * GROUP_ROWS) * NEAR_TOKENS + o_r // NEAR_HEADS % NEAR_TOKENS
    head = o_r // (NEAR_HEADS * NEAR_TOKENS) % (GROUP_ROWS // NEAR_HEADS) * NEAR_HEADS + o_r % NEAR_HEADS
    return token, head


@triton.jit
def load_columns(
    qkvg_ptr: tl.tensor,
    row: tl.tensor,
    row_head: tl.tensor,
    group: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    head_dim: tl.constexpr,
) -> tl.tensor:
    """Queries [D, R] of heads `row_head` [R] of a group at rows `row` [R] of qkvg; 0 where there is no such head."""
    heads_per_group = num_heads // num_kv_heads
    query = row * (2 * (num_heads + num_kv_heads)) + group * heads_per_group + row_head
    q_ptr = qkvg_ptr + query[None, :] * head_dim + tl.arange(0, head_dim)[:, None]
    return tl.load(q_ptr, mask=(row_head < heads_per_group)[None, :], other=0.0)


@triton.jit
def store_scores(
    q: tl.tensor,
    factor: tl.tensor,
    margin: tl.tensor,
    offset: tl.tensor,
    k1_ptr: tl.tensor,
    key_steps_ptr: tl.tensor,
    score_ptr: tl.tensor,
    stride: tl.tensor,
    visible: tl.tensor,
    last_visible: tl.tensor,
    first: tl.tensor,
    upper: tl.tensor,
    end: tl.tensor,
    RATIO: tl.constexpr,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    NEAR_TOKENS: tl.constexpr,
    NEAR_HEADS: tl.constexpr,
    NEAR_BLOCKS: tl.constexpr,
    MIDDLE_BLOCKS: tl.constexpr,
    IS_BOUND: tl.constexpr,
) -> None:
    """Write the scores of blocks first .. end - 1 of each token, -1 from `upper` [BLOCK_T] on; block b in column b.

    With IS_BOUND they are upper bounds, of codes.

    The blocks are RANGES ranges of `length`; turn i takes the RATIO keys of the i-th block of each. The score of block
    `first` lacks the key before it.

    Args: `q` [D, R] in the order of `column_rows`; for rows without a head, or k2, `offset` [R] is -inf: P is 0 there.
        The exponent of 2 is q.k1 * factor + offset, or with IS_BOUND that of `bounded_exponents`, whose `codes` and
        `step` are `q` and `factor`; `visible` [BLOCK_T] the k1 keys that a token sees, `last_visible` the most of them.
    """
    RANGES: tl.constexpr = BLOCK_K // RATIO
    # Rows of the product: keys 0 .. RATIO - 1 of RANGES blocks, in five axes.
    FAR_KEYS: tl.constexpr = 2 if RATIO > 1 else 1
    NEAR_KEYS: tl.constexpr = RATIO // FAR_KEYS
    NEAR: tl.constexpr = NEAR_BLOCKS if NEAR_BLOCKS < RANGES else RANGES
    MIDDLE: tl.constexpr = MIDDLE_BLOCKS if MIDDLE_BLOCKS * NEAR < RANGES else RANGES // NEAR
    FAR: tl.constexpr = RANGES // (MIDDLE * NEAR)
    o_k = tl.arange(0, BLOCK_K)
    near_key = o_k // NEAR % NEAR_KEYS
    middle = o_k // (NEAR * NEAR_KEYS) % MIDDLE
    far_key = o_k // (NEAR * NEAR_KEYS * MIDDLE) % FAR_KEYS
    far = o_k // (NEAR * RATIO * MIDDLE)
    key = far_key * NEAR_KEYS + near_key
    length = tl.cdiv(tl.maximum(end - first, 0), RANGES)
    first_index = RATIO * (first + ((far * MIDDLE + middle) * NEAR + o_k % NEAR) * length) + key
    is_shared = (key == RATIO - 1)[:, None]
    o_d = tl.arange(0, head_dim)
    range_first = first + tl.arange(0, RANGES) * length
    to_token = tl.arange(0, BLOCK_T)[None, :] * stride
    shared = tl.zeros((RANGES, BLOCK_T), tl.float32)
    for turn in range(length):
        index = first_index + RATIO * turn
        k1_row_ptr = k1_ptr + index[:, None].to(tl.int64) * head_dim + o_d[None, :]
        k1 = tl.load(k1_row_ptr, mask=(index < last_visible)[:, None], other=0)
        if IS_BOUND:
            key_step = tl.load(key_steps_ptr + index, mask=index < last_visible, other=0.0)
            exponent = bounded_exponents(k1, key_step, q, factor, margin, offset)
        else:
            exponent = factor * tl.dot(k1, q, input_precision="ieee") + offset[None, :]
        p = tl.exp2(exponent)
        p = tl.reshape(p, (BLOCK_K, BLOCK_T // NEAR_TOKENS, GROUP_ROWS // NEAR_HEADS, NEAR_TOKENS, NEAR_HEADS))
        p = tl.reshape(tl.sum(tl.sum(p, axis=4), axis=2), (BLOCK_K, BLOCK_T))
        p = tl.where(index[:, None] < visible[None, :], tl.minimum(p, LARGEST_FLOAT), 0.0)
        pooled = tl.max(tl.max(tl.reshape(p, (FAR, FAR_KEYS, MIDDLE, NEAR_KEYS, NEAR, BLOCK_T)), axis=3), axis=1)
        score = tl.maximum(tl.reshape(pooled, (RANGES, BLOCK_T)), shared)
        last = tl.reshape(tl.where(is_shared, p, 0.0), (FAR, FAR_KEYS, MIDDLE, NEAR_KEYS, NEAR, BLOCK_T))
        shared = tl.reshape(tl.max(tl.max(last, axis=3), axis=1), (RANGES, BLOCK_T))
        block = (range_first + turn)[:, None]
        tl.store(score_ptr + to_token + block, tl.where(block < upper[None, :], score, -1.0), mask=block < end)
    # The last key of each range is shared with the first block of the next.
    tl.debug_barrier()
    block = (range_first + length)[:, None]
    m_block = (tl.arange(0, RANGES) < RANGES - 1)[:, None] & (block < upper[None, :])
    score = tl.load(score_ptr + to_token + block, mask=m_block, other=0.0)
    tl.store(score_ptr + to_token + block, tl.maximum(score, shared), mask=m_block)
    tl.debug_barrier()
