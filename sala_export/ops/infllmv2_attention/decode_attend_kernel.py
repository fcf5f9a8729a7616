"""The choice and stage 2 of one token, split over the blocks that it attends to: equal parts, then a merge.

The blocks are listed as chosen ones, initial ones, local ones; in dense mode all up to the token's own. Every batch row
and key head has ATTEND_SPLITS programs whatever the context, which share out the list as long as it is. A program whose
part begins among the chosen ones looks for all of them, as its neighbours do at the same time, and keeps its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.dependent import let_next_launch_begin, wait_for_earlier_launches
from .attend_kernel import attend_tile
from .decode_choice import best_in_order, likely_best, likely_places, padded_scores, score_bits
from .positions import chosen_blocks, clamped_past, load_queries, log2_scale, split_bounds


@any_size_kernel
def infllmv2_decode_attend_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    decode_scores_ptr: tl.tensor,
    likely_scores_ptr: tl.tensor,
    likely_ptr: tl.tensor,
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
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ATTEND_SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Attention to one part of the blocks: output [B, G, ATTEND_SPLITS, GROUP_ROWS, D] in fp32 and log2-sum-exp.

    An empty part has a log2-sum-exp of -inf, and its output is not written. Of a sparse row, each program writes its
    own part of the chosen blocks.
    """
    let_next_launch_begin(DEPENDENT)
    wait_for_earlier_launches(DEPENDENT)
    split = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    head = batch * num_kv_heads + group
    o_row = tl.arange(0, GROUP_ROWS)
    o_score = tl.arange(0, COLUMNS)
    scores_ptr = decode_scores_ptr + head * padded_scores(C, block_size, COLUMNS)
    # All that does not wait for the position is asked for first, be it needed or not.
    score = tl.load(scores_ptr + o_score)
    q = load_queries(qkvg_ptr, batch + o_row * 0, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    position = clamped_past(past_length_ptr, batch, 1, C)
    own = position // block_size
    window_blocks = window_size // block_size
    limit = topk - 1 - init_blocks
    chosen = tl.where(is_sparse, chosen_blocks(own, init_blocks, window_blocks, limit), 0)
    # In dense mode, and where initial and local blocks meet, the list is 0, 1, 2 and so on.
    first_local = tl.where(is_sparse, tl.maximum(own - window_blocks, init_blocks), init_blocks)
    count = tl.where(own < first_local, own + 1, chosen + init_blocks + own + 1 - first_local)
    first, end = split_bounds(0, count, split, ATTEND_SPLITS)

    chosen_ptr += head * tl.maximum(limit, 1)
    candidates = own - window_blocks - init_blocks
    if is_sparse & (candidates <= limit):
        _take_every_candidate(chosen_ptr, first, end, chosen, init_blocks, limit, split, SLOTS)
    elif first < chosen:
        bits, index = score_bits(score, o_score < candidates), o_score
        if candidates > COLUMNS:
            likely = (head * ATTEND_SPLITS + split) * likely_places(C, block_size, limit, COLUMNS)
            bits, index = likely_best(
                scores_ptr, likely_scores_ptr + likely, likely_ptr + likely, candidates, limit, COLUMNS, SLOTS
            )
        is_best, place = best_in_order(bits, limit, SLOTS)
        is_own = is_best & (place >= first) & (place < tl.minimum(end, limit))
        tl.store(chosen_ptr + place, init_blocks + index, mask=is_own)
    # The list is read by other threads than those that wrote it.
    tl.debug_barrier()

    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    to_row = (head * ATTEND_SPLITS + split) * GROUP_ROWS + o_row
    if first == end:
        tl.store(split_log_sum_ptr + to_row, tl.full((GROUP_ROWS,), float("-inf"), tl.float32))
        return
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


@triton.jit
def _take_every_candidate(
    chosen_ptr: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    chosen: tl.tensor,
    init_blocks: tl.tensor,
    limit: tl.tensor,
    split: tl.tensor,
    SLOTS: tl.constexpr,
) -> None:
    """Write entries first .. end - 1 of the list of all candidates; the first program also -1 after the last."""
    slot = tl.arange(0, SLOTS)
    is_own = (slot >= first) & (slot < tl.minimum(end, chosen))
    is_unused = (slot >= tl.where(split == 0, chosen, limit)) & (slot < limit)
    tl.store(chosen_ptr + slot, tl.where(slot < chosen, init_blocks + slot, -1), mask=is_own | is_unused)


@any_size_kernel
def infllmv2_decode_merge_kernel(
    qkvg_ptr: tl.tensor,
    split_output_ptr: tl.tensor,
    split_log_sum_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    ATTEND_SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Merge BLOCK_D channels of the parts of one query head by their log2-sum-exp, and gate; grid (D / BLOCK_D, H, B).

    All loads are independent, so that they take the time of one: the output of an empty part is read, and not used.
    """
    wait_for_earlier_launches(DEPENDENT)
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    heads_per_group = num_heads // num_kv_heads
    o_split = tl.arange(0, PADDED_SPLITS)
    m_split = o_split < ATTEND_SPLITS
    group_head = batch * num_kv_heads + head // heads_per_group
    row = (group_head * ATTEND_SPLITS + o_split) * GROUP_ROWS + head % heads_per_group
    log_sum = tl.load(split_log_sum_ptr + row, mask=m_split, other=float("-inf"))
    o = tl.load(split_output_ptr + row[:, None] * head_dim + o_d[None, :], mask=m_split[:, None], other=0.0)
    to_gate = (batch * (2 * (num_heads + num_kv_heads)) + num_heads + 2 * num_kv_heads + head) * head_dim + o_d
    gate = tl.sigmoid(tl.load(qkvg_ptr + to_gate).to(tl.float32))
    weight = tl.exp2(log_sum - tl.max(log_sum, axis=0))
    o = tl.where((log_sum > float("-inf"))[:, None], o, 0.0)
    merged = tl.sum(weight[:, None] * o, axis=0) / tl.sum(weight, axis=0)
    tl.store(y_ptr + (batch * num_heads + head) * head_dim + o_d, (merged * gate).to(y_ptr.dtype.element_ty))
