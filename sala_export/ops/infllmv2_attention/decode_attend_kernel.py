"""Stage 2 of one token, split over the blocks that it attends to: parts of an equal number of blocks, then their merge.

The blocks are listed as chosen ones, initial ones, local ones; in dense mode all up to the token's own. Every batch row
and key head has ATTEND_SPLITS programs whatever the context, which share out the list as long as it is.
"""

from __future__ import annotations

import triton.language as tl

from ..common.any_size import any_size_kernel
from .attend_kernel import attend_tile
from .positions import chosen_blocks, clamped_past, load_queries, log2_scale, split_bounds


@any_size_kernel
def infllmv2_decode_attend_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    split_output_ptr: tl.tensor,
    split_log_sum_ptr: tl.tensor,
    C: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    scale: tl.tensor,
    block_size: tl.constexpr,
    topk: tl.tensor,
    window_size: tl.tensor,
    init_blocks: tl.tensor,
    dense_len: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    ATTEND_SPLITS: tl.constexpr,
) -> None:
    """Attention to one part of the blocks: output [B, G, ATTEND_SPLITS, GROUP_ROWS, D] in fp32 and log2-sum-exp.

    An empty part has a log2-sum-exp of -inf, and its output is not written.
    """
    split = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    position = clamped_past(past_length_ptr, batch, 1, C)
    own = position // block_size
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    window_blocks = window_size // block_size
    limit = topk - 1 - init_blocks
    chosen = tl.where(is_sparse, chosen_blocks(own, init_blocks, window_blocks, limit), 0)
    # In dense mode, and where initial and local blocks meet, the list is 0, 1, 2 and so on.
    first_local = tl.where(is_sparse, tl.maximum(own - window_blocks, init_blocks), init_blocks)
    count = tl.where(own < first_local, own + 1, chosen + init_blocks + own + 1 - first_local)
    first, end = split_bounds(0, count, split, ATTEND_SPLITS)

    o_row = tl.arange(0, GROUP_ROWS)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    head = batch * num_kv_heads + group
    to_row = (head * ATTEND_SPLITS + split) * GROUP_ROWS + o_row
    if first == end:
        tl.store(split_log_sum_ptr + to_row, tl.full((GROUP_ROWS,), float("-inf"), tl.float32))
        return
    q = load_queries(qkvg_ptr, batch + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    chosen_ptr += head * tl.maximum(limit, 1)
    k_ptr = k_cache_ptr + head * C * head_dim
    v_ptr = v_cache_ptr + head * C * head_dim
    scale = log2_scale(scale)
    largest = tl.full((GROUP_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_ROWS,), tl.float32)
    o = tl.zeros((GROUP_ROWS, head_dim), tl.float32)
    tiles = tl.cdiv(block_size, BLOCK_N)
    for i in range(first * tiles, end * tiles):
        entry = i // tiles
        in_block = i % tiles * BLOCK_N + o_n
        forced = entry - chosen
        forced = tl.where(forced < init_blocks, forced, forced - init_blocks + first_local)
        listed = tl.load(chosen_ptr + entry, mask=entry < chosen, other=0)
        # Clamped, so that no content of `chosen` leads out of the cache.
        block = tl.minimum(tl.maximum(tl.where(entry < chosen, listed, forced), 0), own)
        key = block * block_size + in_block
        m_n = (in_block < block_size) & (key <= position)
        cached = key.to(tl.int64)[:, None] * head_dim + o_d[None, :]
        k = tl.load(k_ptr + cached, mask=m_n[:, None], other=0.0)
        v = tl.load(v_ptr + cached, mask=m_n[:, None], other=0.0)
        largest, total, o = attend_tile(q, k, v, m_n[None, :], largest, total, o, scale)
    tl.store(split_output_ptr + to_row[:, None] * head_dim + o_d[None, :], o / total[:, None])
    tl.store(split_log_sum_ptr + to_row, largest + tl.log2(total))


@any_size_kernel
def infllmv2_decode_merge_kernel(
    qkvg_ptr: tl.tensor,
    split_output_ptr: tl.tensor,
    split_log_sum_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    head_dim: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    ATTEND_SPLITS: tl.constexpr,
) -> None:
    """Merge the parts of one query head by their log2-sum-exp, and gate; grid (num_heads, B, 1)."""
    head = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    heads_per_group = num_heads // num_kv_heads
    o_split = tl.arange(0, PADDED_SPLITS)
    o_d = tl.arange(0, head_dim)
    m_split = o_split < ATTEND_SPLITS
    group_head = batch * num_kv_heads + head // heads_per_group
    row = (group_head * ATTEND_SPLITS + o_split) * GROUP_ROWS + head % heads_per_group
    log_sum = tl.load(split_log_sum_ptr + row, mask=m_split, other=float("-inf"))
    m_part = log_sum > float("-inf")
    o = tl.load(split_output_ptr + row[:, None] * head_dim + o_d[None, :], mask=m_part[:, None], other=0.0)
    weight = tl.exp2(log_sum - tl.max(log_sum, axis=0))
    merged = tl.sum(weight[:, None] * o, axis=0) / tl.sum(weight, axis=0)
    to_gate = (batch * (2 * (num_heads + num_kv_heads)) + num_heads + 2 * num_kv_heads + head) * head_dim + o_d
    gate = tl.sigmoid(tl.load(qkvg_ptr + to_gate).to(tl.float32))
    tl.store(y_ptr + (batch * num_heads + head) * head_dim + o_d, (merged * gate).to(y_ptr.dtype.element_ty))
