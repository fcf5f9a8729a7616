"""Append, and the first two parts of stage 1, of one token: k2 normalises what k1 scores, split over the context.

Every batch row and key head has SELECT_SPLITS programs, which share out its k2 keys and then its candidate blocks as
they are now: the grid does not depend on the context. The last program of the first launch appends the token, and takes
the one k2 key that may be new. Dense rows, and rows that may choose every candidate, are appended and not scored. The
best blocks are chosen where they are attended to: decode_attend_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.dependent import let_next_launch_begin, wait_for_earlier_launches
from .block_scores import keys_of_blocks, scores_of_blocks
from .decode_choice import padded_scores
from .positions import clamped_past, complete_windows, load_queries, log2_scale, split_bounds


@any_size_kernel
def infllmv2_decode_normalise_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    split_log_z_ptr: tl.tensor,
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
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SELECT_SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """log2-sum-exp of each query head over one part of k2, [B, G, GROUP_ROWS, SELECT_SPLITS]; -inf for an empty one.

    The last part is the k2 key that the token completes, if it does. Its program appends the token, and writes the k1
    and k2 keys that are complete with it.
    """
    let_next_launch_begin(DEPENDENT)
    wait_for_earlier_launches(DEPENDENT)
    split = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    o_row = tl.arange(0, GROUP_ROWS)
    q = load_queries(qkvg_ptr, batch + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    past = clamped_past(past_length_ptr, batch, 1, C)
    head = batch * num_kv_heads + group
    k2_ptr = k2_cache_ptr + head * C2 * head_dim
    candidates = past // block_size - window_size // block_size - init_blocks
    is_scored = is_sparse & (candidates > topk - 1 - init_blocks)
    old = complete_windows(past, 4 * kernel_size, 4 * kernel_stride)
    scale = log2_scale(scale)
    to_row = split_log_z_ptr + (head * GROUP_ROWS + o_row) * SELECT_SPLITS + split
    if split < SELECT_SPLITS - 1:
        if is_scored:
            first, end = split_bounds(0, old, split, SELECT_SPLITS - 1)
            tl.store(to_row, _log2_sum_exp(q, k2_ptr, first, end, scale, head_dim, BLOCK_B))
    else:
        o_d = tl.arange(0, head_dim)
        row_stride = 2 * (num_heads + num_kv_heads) * head_dim
        new_ptr = qkvg_ptr + batch * row_stride + (num_heads + group) * head_dim
        k_ptr = k_cache_ptr + head * C * head_dim
        to_new = past.to(tl.int64) * head_dim + o_d
        new = tl.load(new_ptr + o_d)
        tl.store(k_ptr + to_new, new)
        tl.store(v_cache_ptr + head * C * head_dim + to_new, tl.load(new_ptr + num_kv_heads * head_dim + o_d))
        log_z = tl.full((GROUP_ROWS,), float("-inf"), tl.float32)
        if complete_windows(past + 1, 4 * kernel_size, 4 * kernel_stride) > old:
            k2 = _mean_with_new(k_ptr, new, past, 4 * kernel_size, head_dim, BLOCK_N)
            tl.store(k2_ptr + old.to(tl.int64) * head_dim + o_d, k2)
            log_z = scale * tl.sum(q.to(tl.float32) * k2.to(tl.float32)[None, :], axis=1)
        # After k2, whose last keys are those of k1: they are in the cache of the multiprocessor.
        window = complete_windows(past, kernel_size, kernel_stride)
        if complete_windows(past + 1, kernel_size, kernel_stride) > window:
            to_window = (head * C1 + window) * head_dim + o_d
            tl.store(k1_cache_ptr + to_window, _mean_with_new(k_ptr, new, past, kernel_size, head_dim, BLOCK_N))
        if is_scored:
            tl.store(to_row, log_z)


@triton.jit
def _mean_with_new(
    k_ptr: tl.tensor,
    new: tl.tensor,
    past: tl.tensor,
    size: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Mean [D], summed in fp32, of the last `size` keys: those of the cache before `past`, and `new` [D]."""
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    total = new.to(tl.float32)
    for start in range(past + 1 - size, past, BLOCK_N):
        row = (start + o_n).to(tl.int64)
        k = tl.load(k_ptr + row[:, None] * head_dim + o_d[None, :], mask=(row < past)[:, None], other=0.0)
        total += tl.sum(k.to(tl.float32), axis=0)
    return (total / size).to(new.dtype)


@triton.jit
def _log2_sum_exp(
    q: tl.tensor,
    k2_ptr: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> tl.tensor:
    """log2 of the sum of 2^(scale q.k2) [GROUP_ROWS] over rows first .. end - 1 of k2; -inf where there is none."""
    o_n = tl.arange(0, BLOCK_B)
    o_d = tl.arange(0, head_dim)
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    for start in range(first, end, BLOCK_B):
        row = start + o_n
        k2_row_ptr = k2_ptr + row[:, None].to(tl.int64) * head_dim + o_d[None, :]
        k2 = tl.load(k2_row_ptr, mask=(row < end)[:, None], other=0.0)
        b = scale * tl.dot(q, tl.trans(k2), input_precision="ieee")
        b = tl.where((row < end)[None, :], b, float("-inf"))
        larger = tl.maximum(largest, tl.max(b, axis=1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(b - larger[:, None]), axis=1)
        largest = larger
    return tl.where(total > 0, largest + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))


@any_size_kernel
def infllmv2_decode_score_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    split_log_z_ptr: tl.tensor,
    decode_scores_ptr: tl.tensor,
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
    COLUMNS: tl.constexpr,
    SELECT_SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Scores of one part of the candidates, [B, G, blocks of the cache] from the first candidate on.

    Those of no candidate are not written.
    """
    let_next_launch_begin(DEPENDENT)
    wait_for_earlier_launches(DEPENDENT)
    split = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    o_row = tl.arange(0, GROUP_ROWS)
    o_split = tl.arange(0, SELECT_SPLITS)
    head = batch * num_kv_heads + group
    # All that does not wait for the position is asked for first.
    is_head = o_row < num_heads // num_kv_heads
    to_part = split_log_z_ptr + (head * GROUP_ROWS + o_row[:, None]) * SELECT_SPLITS + o_split[None, :]
    parts = tl.load(to_part, mask=is_head[:, None], other=float("-inf"))
    q = load_queries(qkvg_ptr, batch + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    position = clamped_past(past_length_ptr, batch, 1, C)
    candidates = position // block_size - window_size // block_size - init_blocks
    first, end = split_bounds(0, candidates, split, SELECT_SPLITS)
    if (is_sparse == 0) | (candidates <= topk - 1 - init_blocks) | (first == end):
        return
    ratio: tl.constexpr = block_size // kernel_stride
    visible = complete_windows(position + 1, kernel_size, kernel_stride)
    k1_ptr = k1_cache_ptr + head * C1 * head_dim
    first += init_blocks
    end += init_blocks
    scale = log2_scale(scale)
    scores_ptr = decode_scores_ptr + head * padded_scores(C, block_size, COLUMNS) - init_blocks
    o_b = tl.arange(0, BLOCK_B)
    log_z = tl.full((GROUP_ROWS,), float("inf"), tl.float32)
    for start in range(first, end, BLOCK_B):
        block = start + o_b
        k1 = keys_of_blocks(k1_ptr, block, block < end, visible, ratio, head_dim)
        # Once, while the first keys are on their way; +inf makes a row without a head, or without k2, score 0.
        if start == first:
            largest = tl.max(parts, axis=1)
            sees_any = largest > float("-inf")
            shift = tl.where(sees_any, largest, 0.0)
            total = tl.sum(tl.exp2(parts - shift[:, None]), axis=1)
            log_z = tl.where(sees_any, shift + tl.log2(tl.where(sees_any, total, 1.0)), float("inf"))
        score = scores_of_blocks(q, k1, log_z, block, visible, scale, ratio)
        tl.store(scores_ptr + block, score, mask=block < end)
