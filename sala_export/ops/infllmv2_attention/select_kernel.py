"""Stage 1 over a tile of tokens: the chosen blocks, without a score that leaves the chip.

R rows = BLOCK_T tokens x GROUP_ROWS heads of one key head, D head dim. Two passes: k2 gives every row its log2-sum-exp
c, then P = sum over heads of 2^(a - c) scores the candidates. Logits are in units of log2: one multiply-add and one
hardware exp2 for each. A turn of the k1 loop takes the phase-th k1 key of BLOCK_B blocks, so that pooling is a maximum
of turns and each k1 key is multiplied once; the last phase, which the next block shares, moves one column to the right.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .positions import chosen_blocks, clamped_past, complete_windows, load_queries, log2_scale
from .top_blocks import NO_KEY, block_keys, empty_list, insert, key_blocks

_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)


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
    o_n = tl.arange(0, BLOCK_B)
    o_d = tl.arange(0, head_dim)
    scale = log2_scale(scale)
    visible = tl.minimum(visible, end)
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    for start in range(first, end, BLOCK_B):
        row = start + o_n
        k2_row_ptr = k2_ptr + row[:, None].to(tl.int64) * head_dim + o_d[None, :]
        k2 = tl.load(k2_row_ptr, mask=(row < end)[:, None], other=0.0)
        b = scale * tl.dot(q, tl.trans(k2), input_precision="ieee")
        b = tl.where(row[None, :] < visible[:, None], b, float("-inf"))
        larger = tl.maximum(largest, tl.max(b, axis=1))
        # Rows that see nothing yet have -inf here, whose difference with itself is NaN.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(b - shift[:, None]), axis=1)
        largest = larger
    return tl.where(total > 0, largest + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))


@triton.jit
def best_candidates(
    q: tl.tensor,
    log_z: tl.tensor,
    k1_ptr: tl.tensor,
    visible: tl.tensor,
    last_visible: tl.tensor,
    lower: tl.tensor,
    upper: tl.tensor,
    end: tl.tensor,
    limit: tl.tensor,
    scale: tl.tensor,
    ratio: tl.constexpr,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """List [BLOCK_T, SLOTS] of the `limit` best of blocks lower .. upper - 1 of each token; `upper` [BLOCK_T] <= end.

    Args: `log_z` [R], +inf where no k2 is visible and for rows without a head: P is 0 there; `visible` [BLOCK_T] the k1
        keys that a token sees, `last_visible` their largest number.
    """
    o_d = tl.arange(0, head_dim)
    o_b = tl.arange(0, BLOCK_B)
    scale = log2_scale(scale)
    best = empty_list(limit, BLOCK_T, SLOTS)
    score = tl.zeros((BLOCK_T, BLOCK_B), tl.float32)
    shared = tl.zeros((BLOCK_T,), tl.float32)
    to_left = tl.broadcast_to(tl.maximum(o_b - 1, 0)[None, :], (BLOCK_T, BLOCK_B))
    # One block early, for the k1 key that it shares with the first.
    first = tl.maximum(lower - 1, 0)
    for turn in range(tl.cdiv(tl.maximum(end - first, 0), BLOCK_B) * ratio):
        phase = turn % ratio
        block = first + turn // ratio * BLOCK_B + o_b
        index = ratio * block + phase
        k1_row_ptr = k1_ptr + index[:, None].to(tl.int64) * head_dim + o_d[None, :]
        k1 = tl.load(k1_row_ptr, mask=(index < last_visible)[:, None], other=0.0)
        p = tl.exp2(scale * tl.dot(q, tl.trans(k1), input_precision="ieee") - log_z[:, None])
        p = tl.sum(tl.reshape(p, (BLOCK_T, GROUP_ROWS, BLOCK_B)), axis=1)
        p = tl.where(index[None, :] < visible[:, None], tl.minimum(p, _LARGEST_FLOAT), 0.0)
        score = tl.where(phase == 0, p, tl.maximum(score, p))
        if phase == ratio - 1:
            from_left = tl.where((o_b == 0)[None, :], shared[:, None], tl.gather(p, to_left, axis=1))
            is_candidate = (block >= lower)[None, :] & (block[None, :] < upper[:, None])
            keys = block_keys(tl.maximum(score, from_left), block[None, :])
            best = insert(best, tl.where(is_candidate, keys, NO_KEY))
            shared = tl.sum(tl.where((o_b == BLOCK_B - 1)[None, :], p, 0.0), axis=1)
    return best


@any_size_kernel
def infllmv2_select_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
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
    BLOCK_B: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Write the chosen blocks of BLOCK_T tokens, then -1; grid (T / BLOCK_T, G, B). Nothing if dense."""
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if tl.load(context_length_ptr + batch) < dense_len:
        return
    past = clamped_past(past_length_ptr, batch, T, C)
    first_t = tl.program_id(0) * BLOCK_T
    # Rows after the chunk repeat its last token: they must not look beyond the valid part of the caches.
    o_t = tl.minimum(first_t + tl.arange(0, BLOCK_T), T - 1)
    o_row = tl.arange(0, BLOCK_T * GROUP_ROWS)
    row_t = tl.minimum(first_t + o_row // GROUP_ROWS, T - 1)
    head = batch * num_kv_heads + group
    window_blocks = window_size // block_size
    limit = topk - 1 - init_blocks
    upper = (past + o_t) // block_size - window_blocks
    last = past + tl.minimum(first_t + BLOCK_T, T) - 1
    end = last // block_size - window_blocks

    # With no more candidates than may be chosen, all are.
    is_contested = end - init_blocks > limit
    seen_2 = tl.where(is_contested, complete_windows(last + 1, 4 * kernel_size, 4 * kernel_stride), 0)
    visible_2 = complete_windows(past + row_t + 1, 4 * kernel_size, 4 * kernel_stride)
    q = load_queries(qkvg_ptr, batch * T + row_t, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    log_z = log2_sum_exp(q, k2_cache_ptr + head * C2 * head_dim, 0, seen_2, visible_2, scale, head_dim, BLOCK_B)
    is_head = o_row % GROUP_ROWS < num_heads // num_kv_heads
    best = best_candidates(
        q,
        tl.where(is_head & (visible_2 > 0), log_z, float("inf")),
        k1_cache_ptr + head * C1 * head_dim,
        complete_windows(past + o_t + 1, kernel_size, kernel_stride),
        complete_windows(last + 1, kernel_size, kernel_stride),
        init_blocks,
        upper,
        tl.where(is_contested, end, 0),
        limit,
        scale,
        block_size // kernel_stride,
        head_dim,
        BLOCK_T,
        BLOCK_B,
        GROUP_ROWS,
        SLOTS,
    )
    slot = tl.arange(0, SLOTS)[None, :]
    every = tl.where(
        slot < chosen_blocks(upper + window_blocks, init_blocks, window_blocks, limit)[:, None], init_blocks + slot, -1
    )
    block = tl.where(is_contested, key_blocks(best), every)
    store_t = first_t + tl.arange(0, BLOCK_T)
    to_row = (head * T + store_t) * tl.maximum(limit, 1)
    tl.store(chosen_ptr + to_row[:, None] + slot, block, mask=(store_t < T)[:, None] & (slot < limit))
