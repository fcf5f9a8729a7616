"""Stage 1 over a tile of tokens: the scores of the candidate blocks, the choice among them, and the union lists.

R rows = BLOCK_T tokens x GROUP_ROWS heads of one key head, D head dim. Two passes over compressed keys: k2 gives every
row its log2-sum-exp c, then P = sum over heads of 2^(a - c) scores the candidates. Logits are in units of log2: one
multiply-add and one hardware exp2 for each. The scores of a tile go to scratch memory, where `block_choice.py` finds
the best. Scratch is for SELECT_PROGRAMS programs, more than run at a time, whatever the size of the chunk.

The k1 pass computes K1 Q^T, keys by rows: a thread then holds heads of a token and keys of a block side by side, and
pools them in registers. Which rows and columns these are is free, and tiles.py says what suits the product of each
architecture. A turn takes one block of each of a number of ranges, and the next turn the block after it, so that the
key that two blocks share stays in the thread that needs it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .block_choice import choose_blocks, store_unions
from .positions import chosen_blocks, clamped_past, complete_windows, log2_scale

LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
"""The most that P counts (README.md)."""


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
def _column_rows(
    R: tl.constexpr, GROUP_ROWS: tl.constexpr, NEAR_TOKENS: tl.constexpr, NEAR_HEADS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Token and head [R] of each column of K1 Q^T: NEAR_HEADS heads of each of NEAR_TOKENS tokens, and so on."""
    o_r = tl.arange(0, R)
    token = o_r // (NEAR_TOKENS * GROUP_ROWS) * NEAR_TOKENS + o_r // NEAR_HEADS % NEAR_TOKENS
    head = o_r // (NEAR_HEADS * NEAR_TOKENS) % (GROUP_ROWS // NEAR_HEADS) * NEAR_HEADS + o_r % NEAR_HEADS
    return token, head


@triton.jit
def _store_scores(
    q: tl.tensor,
    log_z: tl.tensor,
    k1_ptr: tl.tensor,
    score_ptr: tl.tensor,
    stride: tl.tensor,
    visible: tl.tensor,
    last_visible: tl.tensor,
    first: tl.tensor,
    upper: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    RATIO: tl.constexpr,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    NEAR_TOKENS: tl.constexpr,
    NEAR_HEADS: tl.constexpr,
    NEAR_BLOCKS: tl.constexpr,
    MIDDLE_BLOCKS: tl.constexpr,
) -> None:
    """Write the scores of blocks first .. end - 1 of each token, -1 from `upper` [BLOCK_T] on; block b in column b.

    The blocks are RANGES ranges of `length`; turn i takes the RATIO keys of the i-th block of each. The score of block
    `first` lacks the key before it.

    Args: `q` [R, D] in the order of `_column_rows`; `log_z` [R], +inf where no k2 is visible and for rows without a
        head: P is 0 there; `visible` [BLOCK_T] the k1 keys that a token sees, `last_visible` their largest number.
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
    scale = log2_scale(scale)
    shared = tl.zeros((RANGES, BLOCK_T), tl.float32)
    for turn in range(length):
        index = first_index + RATIO * turn
        k1_row_ptr = k1_ptr + index[:, None].to(tl.int64) * head_dim + o_d[None, :]
        k1 = tl.load(k1_row_ptr, mask=(index < last_visible)[:, None], other=0.0)
        p = tl.exp2(scale * tl.dot(k1, tl.trans(q), input_precision="ieee") - log_z[None, :])
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


@triton.jit
def _acquired_slot(
    slots_ptr: tl.tensor, blocks: tl.tensor, MOST: tl.constexpr, SCRATCH_BLOCKS: tl.constexpr
) -> tl.tensor:
    """A slot that no other program has; its counter is 1 until it is set back.

    There is one for each program, up to MOST, or as many as hold SCRATCH_BLOCKS scores of a token for each of these.

    A program that finds all of them taken waits for those that have them, which run and wait for nobody.
    """
    program = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
    slots = tl.minimum(tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2), MOST)
    slots = tl.maximum(slots * tl.minimum(blocks, SCRATCH_BLOCKS) // blocks, 1)
    slot = program % slots
    while tl.atomic_cas(slots_ptr + slot, 0, 1, sem="acquire") != 0:
        slot = (slot + 1) % slots
    return slot


@any_size_kernel
def infllmv2_select_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    block_scores_ptr: tl.tensor,
    survivors_ptr: tl.tensor,
    select_slots_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    union_blocks_ptr: tl.tensor,
    union_size_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    C1: tl.tensor,
    C2: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    scale: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.constexpr,
    block_size: tl.constexpr,
    topk: tl.tensor,
    window_size: tl.tensor,
    init_blocks: tl.tensor,
    dense_len: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_K2: tl.constexpr,
    NEAR_TOKENS: tl.constexpr,
    NEAR_HEADS: tl.constexpr,
    NEAR_BLOCKS: tl.constexpr,
    MIDDLE_BLOCKS: tl.constexpr,
    UNION_T: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SURVIVOR_SLOTS: tl.constexpr,
    SELECT_PROGRAMS: tl.constexpr,
    SCRATCH_BLOCKS: tl.constexpr,
) -> None:
    """Write the chosen blocks of BLOCK_T tokens, then -1, and their union lists; grid (T / BLOCK_T, G, B).

    Nothing if dense. The latest tiles, which have most to do, come first.
    """
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if tl.load(context_length_ptr + batch) < dense_len:
        return
    past = clamped_past(past_length_ptr, batch, T, C)
    first_t = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_T
    # Rows after the chunk repeat its last token: they must not look beyond the valid part of the caches.
    o_t = tl.arange(0, BLOCK_T)
    position = past + tl.minimum(first_t + o_t, T - 1)
    last = past + tl.minimum(first_t + BLOCK_T, T) - 1
    head = batch * num_kv_heads + group
    window_blocks = window_size // block_size
    limit = topk - 1 - init_blocks
    upper = position // block_size - window_blocks
    end = last // block_size - window_blocks
    to_row = head * T + first_t
    width = tl.maximum(limit, 1)
    if (end - init_blocks > limit) & (limit > 0):
        row_token, row_head = _column_rows(BLOCK_T * GROUP_ROWS, GROUP_ROWS, NEAR_TOKENS, NEAR_HEADS)
        row_t = tl.minimum(first_t + row_token, T - 1)
        heads_per_group = num_heads // num_kv_heads
        is_head = row_head < heads_per_group
        query = (batch * T + row_t) * (2 * (num_heads + num_kv_heads)) + group * heads_per_group + row_head
        q_ptr = qkvg_ptr + query[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
        q = tl.load(q_ptr, mask=is_head[:, None], other=0.0)
        visible_2 = complete_windows(past + row_t + 1, 4 * kernel_size, 4 * kernel_stride)
        seen_2 = complete_windows(last + 1, 4 * kernel_size, 4 * kernel_stride)
        k2_ptr = k2_cache_ptr + head * C2 * head_dim
        log_z = log2_sum_exp(q, k2_ptr, 0, seen_2, visible_2, scale, head_dim, BLOCK_K2)
        stride = tl.cdiv(C, block_size)
        scratch = _acquired_slot(select_slots_ptr, stride, SELECT_PROGRAMS, SCRATCH_BLOCKS)
        score_ptr = block_scores_ptr + scratch.to(tl.int64) * BLOCK_T * stride
        _store_scores(
            q,
            tl.where(is_head & (visible_2 > 0), log_z, float("inf")),
            k1_cache_ptr + head * C1 * head_dim,
            score_ptr,
            stride,
            complete_windows(position + 1, kernel_size, kernel_stride),
            complete_windows(last + 1, kernel_size, kernel_stride),
            # One block early, for the k1 key that it shares with the first.
            tl.maximum(init_blocks - 1, 0),
            upper,
            end,
            scale,
            block_size // kernel_stride,
            head_dim,
            BLOCK_T,
            BLOCK_K,
            GROUP_ROWS,
            NEAR_TOKENS,
            NEAR_HEADS,
            NEAR_BLOCKS,
            MIDDLE_BLOCKS,
        )
        survivor_stride = tl.minimum(stride, SURVIVOR_SLOTS)
        choose_blocks(
            score_ptr,
            stride,
            survivors_ptr + scratch.to(tl.int64) * BLOCK_T * survivor_stride,
            survivor_stride,
            init_blocks,
            end,
            limit,
            chosen_ptr + to_row * width,
            T - first_t,
            BLOCK_T,
            SLOTS,
            SURVIVOR_SLOTS,
        )
        tl.debug_barrier()
        tl.atomic_xchg(select_slots_ptr + scratch, 0, sem="release")
    else:
        # With no more candidates than may be chosen, all are.
        slot = tl.arange(0, SLOTS)[None, :]
        count = chosen_blocks(upper + window_blocks, init_blocks, window_blocks, limit)
        every = tl.where(slot < count[:, None], init_blocks + slot, -1)
        m_slot = (first_t + o_t < T)[:, None] & (slot < limit)
        tl.store(chosen_ptr + to_row * width + (o_t[:, None] * width + slot), every, mask=m_slot)
        tl.debug_barrier()
    store_unions(
        chosen_ptr + to_row * width,
        union_blocks_ptr + to_row * SLOTS,
        union_size_ptr + to_row,
        T - first_t,
        limit,
        BLOCK_T,
        UNION_T,
        SLOTS,
    )
