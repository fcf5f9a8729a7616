"""Stage 1 over a tile of tokens: the scores of the candidate blocks, the choice among them, and the union lists.

Two passes over compressed keys: k2 gives every row its log2-sum-exp c, then P = sum over heads of 2^(a - c) scores the
candidates (tile_scores.py). The scores of a tile go to scratch memory, where block_choice.py finds the best. Scratch is
for SELECT_PROGRAMS programs, more than run at a time, whatever the size of the chunk.

A tile with BOUNDED_BLOCKS candidates or more multiplies k1 in int8 (quantize_keys_kernel.py), which gives each block an
upper bound of its score. Those that may be among the best are scored exactly (bounded_choice.py). Where there is no
room for all of these, the tile takes the exact pass after all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .block_choice import choose_blocks, store_unions
from .bounded_choice import choose_within_bounds
from .positions import chosen_blocks, clamped_past, complete_windows, log2_scale
from .quantize_keys_kernel import largest_error, quantized_queries
from .tile_scores import column_rows, load_columns, log2_sum_exp, store_scores

_ERRORS = tl.constexpr(256)
"""Errors of keys that are read at a time."""


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
    key_codes_ptr: tl.tensor,
    key_steps_ptr: tl.tensor,
    key_errors_ptr: tl.tensor,
    key_origin_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    block_scores_ptr: tl.tensor,
    survivors_ptr: tl.tensor,
    select_slots_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    survivor_count_ptr: tl.tensor,
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
    BLOCK_B: tl.constexpr,
    BOUNDED_BLOCKS: tl.constexpr,
    BOUNDED_TOKENS: tl.constexpr,
    CODED_KEYS: tl.constexpr,
    QUANTIZED_KEYS: tl.constexpr,
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

    Nothing if dense. The latest tiles, which have most to do, come first. `survivor_count` of a tile is the most blocks
    that one of its tokens scored exactly, more than SURVIVOR_SLOTS where the tile took the exact pass after the bounds,
    and -1 without bounds.
    """
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if tl.load(context_length_ptr + batch) < dense_len:
        return
    past = clamped_past(past_length_ptr, batch, T, C)
    first_t = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_T
    rows = tl.minimum(T - first_t, BLOCK_T)
    # Rows after the chunk repeat its last token: they must not look beyond the valid part of the caches.
    o_t = tl.arange(0, BLOCK_T)
    position = past + tl.minimum(first_t + o_t, T - 1)
    last = past + first_t + rows - 1
    head = batch * num_kv_heads + group
    window_blocks = window_size // block_size
    limit = topk - 1 - init_blocks
    upper = position // block_size - window_blocks
    end = last // block_size - window_blocks
    to_row = head * T + first_t
    width = tl.maximum(limit, 1)
    most = tl.full((), -1, tl.int32)
    if (end - init_blocks > limit) & (limit > 0):
        ratio: tl.constexpr = block_size // kernel_stride
        row_token, row_head = column_rows(BLOCK_T * GROUP_ROWS, GROUP_ROWS, NEAR_TOKENS, NEAR_HEADS)
        row_t = tl.minimum(first_t + row_token, T - 1)
        q = load_columns(qkvg_ptr, batch * T + row_t, row_head, group, num_heads, num_kv_heads, head_dim)
        visible_2 = complete_windows(past + row_t + 1, 4 * kernel_size, 4 * kernel_stride)
        seen_2 = complete_windows(last + 1, 4 * kernel_size, 4 * kernel_stride)
        k2_ptr = k2_cache_ptr + head * C2 * head_dim
        log_z = log2_sum_exp(tl.trans(q), k2_ptr, 0, seen_2, visible_2, scale, head_dim, BLOCK_K2)
        log_z = tl.where((row_head < num_heads // num_kv_heads) & (visible_2 > 0), log_z, float("inf"))
        stride = tl.cdiv(C, block_size)
        scratch = _acquired_slot(select_slots_ptr, stride, SELECT_PROGRAMS, SCRATCH_BLOCKS)
        score_ptr = block_scores_ptr + scratch.to(tl.int64) * BLOCK_T * stride
        survivor_stride = tl.minimum(stride, SURVIVOR_SLOTS)
        survivor_ptr = survivors_ptr + scratch.to(tl.int64) * BLOCK_T * survivor_stride
        k1_ptr = k1_cache_ptr + head * C1 * head_dim
        visible = complete_windows(position + 1, kernel_size, kernel_stride)
        seen = complete_windows(last + 1, kernel_size, kernel_stride)
        # One block early, for the k1 key that it shares with the first.
        early = tl.maximum(init_blocks - 1, 0)
        # Two conditions, because nothing is compiled of what a constant leaves out.
        if BOUNDED_BLOCKS > 0:
            code_rows = tl.cdiv(C, kernel_stride)
            if (T >= BOUNDED_TOKENS) & (end - init_blocks >= BOUNDED_BLOCKS) & (code_rows <= CODED_KEYS):
                log_z_ptr = log_sum_ptr + to_row * GROUP_ROWS
                m_row = row_token < rows
                tl.store(log_z_ptr + row_token * GROUP_ROWS + row_head, log_z, mask=m_row)
                parts = tl.cdiv(code_rows, QUANTIZED_KEYS)
                error = largest_error(key_errors_ptr + head * parts, tl.cdiv(seen, QUANTIZED_KEYS), _ERRORS)
                codes, step, margin, offset = quantized_queries(
                    q, key_origin_ptr + head * 2 * head_dim, error, log_z, scale, head_dim
                )
                store_scores(
                    codes,
                    step,
                    margin,
                    offset,
                    key_codes_ptr + head * code_rows * head_dim,
                    key_steps_ptr + head * code_rows,
                    score_ptr,
                    stride,
                    visible,
                    seen,
                    early,
                    upper,
                    end,
                    ratio,
                    head_dim,
                    BLOCK_T,
                    BLOCK_K,
                    GROUP_ROWS,
                    NEAR_TOKENS,
                    NEAR_HEADS,
                    NEAR_BLOCKS,
                    MIDDLE_BLOCKS,
                    True,
                )
                most = choose_within_bounds(
                    qkvg_ptr,
                    batch * T + first_t,
                    rows,
                    group,
                    log_z_ptr,
                    k1_ptr,
                    score_ptr,
                    stride,
                    survivor_ptr,
                    survivor_stride,
                    past + first_t,
                    init_blocks,
                    end,
                    limit,
                    chosen_ptr + to_row * width,
                    scale,
                    num_heads,
                    num_kv_heads,
                    kernel_size,
                    kernel_stride,
                    ratio,
                    head_dim,
                    BLOCK_T,
                    BLOCK_B,
                    GROUP_ROWS,
                    SLOTS,
                    SURVIVOR_SLOTS,
                )
        if (most < 0) | (most > survivor_stride):
            # Queries are loaded again: kept behind the bounds they take 250 registers and not 241 (SM120).
            store_scores(
                load_columns(qkvg_ptr, batch * T + row_t, row_head, group, num_heads, num_kv_heads, head_dim),
                log2_scale(scale),
                log_z,
                -log_z,
                k1_ptr,
                key_steps_ptr,
                score_ptr,
                stride,
                visible,
                seen,
                early,
                upper,
                end,
                ratio,
                head_dim,
                BLOCK_T,
                BLOCK_K,
                GROUP_ROWS,
                NEAR_TOKENS,
                NEAR_HEADS,
                NEAR_BLOCKS,
                MIDDLE_BLOCKS,
                False,
            )
            choose_blocks(
                score_ptr,
                stride,
                survivor_ptr,
                survivor_stride,
                init_blocks,
                end,
                limit,
                chosen_ptr + to_row * width,
                rows,
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
        m_slot = (o_t < rows)[:, None] & (slot < limit)
        tl.store(chosen_ptr + to_row * width + (o_t[:, None] * width + slot), every, mask=m_slot)
        tl.debug_barrier()
    tl.store(survivor_count_ptr + head * tl.num_programs(0) + first_t // BLOCK_T, most)
    store_unions(
        chosen_ptr + to_row * width,
        union_blocks_ptr + to_row * SLOTS,
        union_size_ptr + to_row,
        rows,
        limit,
        BLOCK_T,
        UNION_T,
        SLOTS,
    )
