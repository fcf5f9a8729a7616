"""Stage 1 of one token, split over the context: three launches that give the blocks of select_kernel.py.

Every batch row and key head has SELECT_SPLITS programs, which share out its k2 keys and then its candidate blocks as
they are now: the grid does not depend on the context. Each writes at most SLOTS candidates; a last program takes the
best of all. Dense rows, and rows that may choose every candidate, leave the first two launches at once.
"""

from __future__ import annotations

import triton.language as tl

from ..common.any_size import any_size_kernel
from .positions import chosen_blocks, clamped_past, complete_windows, load_queries, split_bounds
from .select_kernel import best_candidates, log2_sum_exp
from .top_blocks import is_among_best, key_blocks, key_scores


@any_size_kernel
def infllmv2_decode_normalise_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    split_log_z_ptr: tl.tensor,
    C: tl.tensor,
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
    BLOCK_B: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SELECT_SPLITS: tl.constexpr,
) -> None:
    """log2-sum-exp of each query head over one part of k2, [B, G, SELECT_SPLITS, GROUP_ROWS]; -inf for an empty one."""
    split = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    position = clamped_past(past_length_ptr, batch, 1, C)
    candidates = position // block_size - window_size // block_size - init_blocks
    if (tl.load(context_length_ptr + batch) < dense_len) | (candidates <= topk - 1 - init_blocks):
        return
    o_row = tl.arange(0, GROUP_ROWS)
    head = batch * num_kv_heads + group
    visible = complete_windows(position + 1, 4 * kernel_size, 4 * kernel_stride)
    first, end = split_bounds(0, visible, split, SELECT_SPLITS)
    to_row = (head * SELECT_SPLITS + split) * GROUP_ROWS + o_row
    if first == end:
        tl.store(split_log_z_ptr + to_row, tl.full((GROUP_ROWS,), float("-inf"), tl.float32))
        return
    q = load_queries(qkvg_ptr, batch + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    log_z = log2_sum_exp(
        q, k2_cache_ptr + head * C2 * head_dim, first, end, visible + o_row * 0, scale, head_dim, BLOCK_B
    )
    tl.store(split_log_z_ptr + to_row, log_z)


@any_size_kernel
def infllmv2_decode_score_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    split_log_z_ptr: tl.tensor,
    split_scores_ptr: tl.tensor,
    split_blocks_ptr: tl.tensor,
    C: tl.tensor,
    C1: tl.tensor,
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
    BLOCK_B: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SELECT_SPLITS: tl.constexpr,
) -> None:
    """The best blocks of one part of the candidates with their scores, [B, G, SELECT_SPLITS, SLOTS]; block -1: none."""
    split = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    position = clamped_past(past_length_ptr, batch, 1, C)
    limit = topk - 1 - init_blocks
    candidates_end = position // block_size - window_size // block_size
    if (tl.load(context_length_ptr + batch) < dense_len) | (candidates_end - init_blocks <= limit):
        return
    o_row = tl.arange(0, GROUP_ROWS)
    o_split = tl.arange(0, SELECT_SPLITS)
    head = batch * num_kv_heads + group
    to_slot = (head * SELECT_SPLITS + split) * SLOTS + tl.arange(0, SLOTS)[None, :]
    first, end = split_bounds(init_blocks, candidates_end, split, SELECT_SPLITS)
    if first == end:
        tl.store(split_blocks_ptr + to_slot, tl.full((1, SLOTS), -1, tl.int32))
        return
    parts = tl.load(
        split_log_z_ptr + (head * SELECT_SPLITS + o_split[:, None]) * GROUP_ROWS + o_row[None, :],
    )
    largest = tl.max(parts, axis=0)
    sees_any = largest > float("-inf")
    shift = tl.where(sees_any, largest, 0.0)
    total = tl.sum(tl.exp2(parts - shift[None, :]), axis=0)
    log_z = shift + tl.log2(tl.where(sees_any, total, 1.0))
    is_head = o_row < num_heads // num_kv_heads
    q = load_queries(qkvg_ptr, batch + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    visible = complete_windows(position + 1, kernel_size, kernel_stride)
    o_t = tl.arange(0, 1)
    best = best_candidates(
        q,
        tl.where(is_head & sees_any, log_z, float("inf")),
        k1_cache_ptr + head * C1 * head_dim,
        visible + o_t,
        visible,
        first,
        end + o_t,
        end,
        limit,
        scale,
        block_size // kernel_stride,
        head_dim,
        1,
        BLOCK_B,
        GROUP_ROWS,
        SLOTS,
    )
    tl.store(split_scores_ptr + to_slot, key_scores(best))
    tl.store(split_blocks_ptr + to_slot, key_blocks(best))


@any_size_kernel
def infllmv2_decode_choose_kernel(
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    split_scores_ptr: tl.tensor,
    split_blocks_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    C: tl.tensor,
    num_kv_heads: tl.tensor,
    block_size: tl.constexpr,
    topk: tl.tensor,
    window_size: tl.tensor,
    init_blocks: tl.tensor,
    dense_len: tl.tensor,
    SLOTS: tl.constexpr,
    SELECT_SPLITS: tl.constexpr,
) -> None:
    """Write the chosen blocks, then -1, from the candidates of all splits; grid (1, G, B). Nothing if dense."""
    batch = tl.program_id(2).to(tl.int64)
    if tl.load(context_length_ptr + batch) < dense_len:
        return
    head = batch * num_kv_heads + tl.program_id(1)
    limit = topk - 1 - init_blocks
    window_blocks = window_size // block_size
    own = clamped_past(past_length_ptr, batch, 1, C) // block_size
    is_contested = own - window_blocks - init_blocks > limit
    chosen_ptr += head * tl.maximum(limit, 1)
    slot = tl.arange(0, SLOTS)
    if is_contested:
        o_all = tl.arange(0, SELECT_SPLITS * SLOTS)
        block = tl.load(split_blocks_ptr + head * SELECT_SPLITS * SLOTS + o_all)
        score = tl.load(split_scores_ptr + head * SELECT_SPLITS * SLOTS + o_all)
        is_chosen = is_among_best(score, block, limit)
        place = tl.cumsum(is_chosen.to(tl.int32), 0) - 1
        tl.store(chosen_ptr + place, block, mask=is_chosen & (place < limit))
    else:
        count = chosen_blocks(own, init_blocks, window_blocks, limit)
        tl.store(chosen_ptr + slot, tl.where(slot < count, init_blocks + slot, -1), mask=slot < limit)
