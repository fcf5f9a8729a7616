"""The choice among blocks whose scores are known by upper bounds only: that among the scores themselves.

The blocks of the best bounds are scored exactly. What is chosen has at least the worst of these scores, and so has no
block whose bound is below it. All others, the survivors, are scored exactly, and the best of them are chosen.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .block_choice import choose_blocks, choose_survivors, end_lists, list_survivors
from .block_scores import keys_of_blocks, scores_of_blocks
from .positions import complete_windows, load_queries, log2_scale


@triton.jit
def choose_within_bounds(
    qkvg_ptr: tl.tensor,
    first_row: tl.tensor,
    rows: tl.tensor,
    group: tl.tensor,
    log_z_ptr: tl.tensor,
    k1_ptr: tl.tensor,
    score_ptr: tl.tensor,
    stride: tl.tensor,
    survivor_ptr: tl.tensor,
    survivor_stride: tl.tensor,
    position: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    limit: tl.tensor,
    chosen_ptr: tl.tensor,
    scale: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.constexpr,
    RATIO: tl.constexpr,
    head_dim: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SURVIVOR_SLOTS: tl.constexpr,
) -> tl.tensor:
    """`choose_blocks` where scratch holds upper bounds, if no row has more survivors than there is room for.

    Returns: the most survivors of a row. Above `survivor_stride` the blocks of the best bounds stand in `chosen`.
    """
    choose_blocks(
        score_ptr,
        stride,
        survivor_ptr,
        survivor_stride,
        first,
        end,
        limit,
        chosen_ptr,
        rows,
        ROWS,
        SLOTS,
        SURVIVOR_SLOTS,
    )
    tl.debug_barrier()
    _store_exact_scores(
        qkvg_ptr,
        first_row,
        rows,
        group,
        log_z_ptr,
        k1_ptr,
        chosen_ptr,
        tl.maximum(limit, 1),
        limit,
        score_ptr,
        stride,
        position,
        scale,
        num_heads,
        num_kv_heads,
        kernel_size,
        kernel_stride,
        RATIO,
        head_dim,
        GROUP_ROWS,
        BLOCK_B,
    )
    tl.debug_barrier()
    worst = _worst_score(chosen_ptr, score_ptr, stride, limit, rows, ROWS, SLOTS)
    count = list_survivors(score_ptr, stride, survivor_ptr, survivor_stride, first, end, worst, ROWS)
    # Rows after the chunk have no list.
    count = tl.where(tl.arange(0, ROWS) < rows, count, 0)
    most = tl.max(count, axis=0)
    end_lists(survivor_ptr, survivor_stride, count, ROWS, SURVIVOR_SLOTS)
    tl.debug_barrier()
    if most <= survivor_stride:
        _store_exact_scores(
            qkvg_ptr,
            first_row,
            rows,
            group,
            log_z_ptr,
            k1_ptr,
            survivor_ptr,
            survivor_stride,
            most,
            score_ptr,
            stride,
            position,
            scale,
            num_heads,
            num_kv_heads,
            kernel_size,
            kernel_stride,
            RATIO,
            head_dim,
            GROUP_ROWS,
            BLOCK_B,
        )
        tl.debug_barrier()
        choose_survivors(
            score_ptr,
            stride,
            survivor_ptr,
            survivor_stride,
            count,
            first,
            end,
            limit,
            chosen_ptr,
            rows,
            ROWS,
            SLOTS,
            SURVIVOR_SLOTS,
        )
    return most


@triton.jit
def _store_exact_scores(
    qkvg_ptr: tl.tensor,
    first_row: tl.tensor,
    rows: tl.tensor,
    group: tl.tensor,
    log_z_ptr: tl.tensor,
    k1_ptr: tl.tensor,
    list_ptr: tl.tensor,
    list_stride: tl.tensor,
    count: tl.tensor,
    score_ptr: tl.tensor,
    stride: tl.tensor,
    position: tl.tensor,
    scale: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.constexpr,
    RATIO: tl.constexpr,
    head_dim: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> None:
    """Write the scores of listed blocks, in place of their bounds.

    Args: `rows` lists of `count` blocks, or -1, `list_stride` apart; `log_z_ptr` rows of GROUP_ROWS; `first_row`, the
        first token's row of qkvg, and `position`, where it stands.
    """
    o_row = tl.arange(0, GROUP_ROWS)
    scale = log2_scale(scale)
    turns = tl.cdiv(count, BLOCK_B)
    for turn in range(rows * turns):
        row = turn // turns
        place = turn % turns * BLOCK_B + tl.arange(0, BLOCK_B)
        block = tl.load(list_ptr + row * list_stride + place, mask=place < count, other=-1)
        visible = complete_windows(position + row + 1, kernel_size, kernel_stride)
        k1 = keys_of_blocks(k1_ptr, block, block >= 0, visible, RATIO, head_dim)
        q = load_queries(qkvg_ptr, first_row + row + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
        log_z = tl.load(log_z_ptr + row * GROUP_ROWS + o_row)
        score = scores_of_blocks(q, k1, log_z, block, visible, scale, RATIO)
        tl.store(score_ptr + row * stride + block, score, mask=block >= 0)


@triton.jit
def _worst_score(
    chosen_ptr: tl.tensor,
    score_ptr: tl.tensor,
    stride: tl.tensor,
    limit: tl.tensor,
    rows: tl.tensor,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tl.tensor:
    """Bits of the lowest score of the listed blocks of each row, [ROWS]; 0 where a list has fewer than `limit`."""
    row = tl.arange(0, ROWS)[:, None]
    slot = tl.arange(0, SLOTS)[None, :]
    is_listed = (row < rows) & (slot < limit)
    block = tl.load(chosen_ptr + row * tl.maximum(limit, 1) + slot, mask=is_listed, other=-1)
    score = tl.load(score_ptr + row * stride + block, mask=block >= 0, other=0.0)
    return tl.min(tl.where(slot < limit, score.to(tl.int32, bitcast=True), 0x7FFFFFFF), axis=1)
