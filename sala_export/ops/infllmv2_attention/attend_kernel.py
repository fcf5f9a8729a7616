"""Stage 2 over a chunk: the forced blocks of a tile of tokens with full tiles, then each token's chosen blocks.

R rows = BLOCK_T tokens x GROUP_ROWS heads of one key head, D head dim. Neighbouring tokens share the initial and the
local blocks: these, and in dense mode all keys, are read once per tile of R rows. A sparse token that has chosen blocks
then goes on from there, one program each: the local part's output waits in `y`, rounded to X, beside its log2-sum-exp.
Logits are in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .positions import chosen_blocks, clamped_past, load_queries, log2_scale


@triton.jit
def attend_tile(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    is_seen: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    o: tl.tensor,
    scale: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One turn of the running softmax: `largest`, `total` [R], `o` [R, D] with keys and values [N, D] where `is_seen`.

    `is_seen` broadcasts to [R, N]; `scale` includes log2 e.
    """
    logits = tl.where(is_seen, scale * tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
    larger = tl.maximum(largest, tl.max(logits, axis=1))
    # A row that has seen nothing yet has -inf here, whose difference with itself is NaN.
    shift = tl.where(larger == float("-inf"), 0.0, larger)
    shrink = tl.exp2(largest - shift)
    p = tl.exp2(logits - shift[:, None])
    total = total * shrink + tl.sum(p, axis=1)
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")
    return larger, total, o


@any_size_kernel
def infllmv2_attend_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    y_ptr: tl.tensor,
    T: tl.tensor,
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
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
) -> None:
    """Attention of BLOCK_T tokens to their forced blocks, or in dense mode to all keys; grid (T / BLOCK_T, G, B).

    Gated where that is all a token attends to; else y gets the output so far and log_sum [B, G, T, GROUP_ROWS] its
    log2-sum-exp.
    """
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    past = clamped_past(past_length_ptr, batch, T, C)
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    heads_per_group = num_heads // num_kv_heads
    first_t = tl.program_id(0) * BLOCK_T
    o_row = tl.arange(0, BLOCK_T * GROUP_ROWS)
    o_t = first_t + o_row // GROUP_ROWS
    row = batch * T + tl.minimum(o_t, T - 1)
    position = past + tl.minimum(o_t, T - 1)
    q = load_queries(qkvg_ptr, row, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)

    window_blocks = tl.where(is_sparse, window_size // block_size, C)
    # First key of each row's local blocks, and of the tile's; initial blocks before the latter are read apart.
    local = tl.maximum(position // block_size - window_blocks, 0) * block_size
    first_local = tl.maximum((past + first_t) // block_size - window_blocks, 0) * block_size
    init_end = tl.minimum(init_blocks * block_size, first_local)
    end = past + tl.minimum(first_t + BLOCK_T, T)
    initial_tiles = tl.cdiv(init_end, BLOCK_N)

    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    k_ptr = k_cache_ptr + (batch * num_kv_heads + group) * C * head_dim
    v_ptr = v_cache_ptr + (batch * num_kv_heads + group) * C * head_dim
    scale = log2_scale(scale)
    largest = tl.full((BLOCK_T * GROUP_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T * GROUP_ROWS,), tl.float32)
    o = tl.zeros((BLOCK_T * GROUP_ROWS, head_dim), tl.float32)
    for i in range(initial_tiles + tl.cdiv(end - first_local, BLOCK_N)):
        is_initial = i < initial_tiles
        key = tl.where(is_initial, i * BLOCK_N, first_local + (i - initial_tiles) * BLOCK_N) + o_n
        m_n = key < tl.where(is_initial, init_end, end)
        cached = key.to(tl.int64)[:, None] * head_dim + o_d[None, :]
        k = tl.load(k_ptr + cached, mask=m_n[:, None], other=0.0)
        v = tl.load(v_ptr + cached, mask=m_n[:, None], other=0.0)
        # Keys of an initial block count as local to every row; masked ones as after every row.
        not_before = tl.where(key < init_blocks * block_size, C, key)
        not_after = tl.where(m_n, key, C)
        is_seen = (not_after[None, :] <= position[:, None]) & (not_before[None, :] >= local[:, None])
        largest, total, o = attend_tile(q, k, v, is_seen, largest, total, o, scale)

    own = position // block_size
    count = chosen_blocks(own, init_blocks, window_size // block_size, topk - 1 - init_blocks)
    goes_on = tl.where(is_sparse, count, 0) > 0
    o_head = o_row % GROUP_ROWS
    m_row = (o_t < T) & (o_head < heads_per_group)
    head = (group * heads_per_group + o_head)[:, None] * head_dim + o_d[None, :]
    to_gate = (row * (2 * (num_heads + num_kv_heads)) + num_heads + 2 * num_kv_heads)[:, None] * head_dim + head
    gate = tl.load(qkvg_ptr + to_gate, mask=m_row[:, None], other=0.0).to(tl.float32)
    y = o / total[:, None] * tl.where(goes_on[:, None], 1.0, tl.sigmoid(gate))
    tl.store(y_ptr + row[:, None] * num_heads * head_dim + head, y.to(y_ptr.dtype.element_ty), mask=m_row[:, None])
    to_log_sum = ((batch * num_kv_heads + group) * T + o_t) * GROUP_ROWS + o_head
    tl.store(log_sum_ptr + to_log_sum, largest + tl.log2(total), mask=m_row & goes_on)


@any_size_kernel
def infllmv2_gather_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    y_ptr: tl.tensor,
    T: tl.tensor,
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
) -> None:
    """Go on from the local part of one token with its chosen blocks, and gate; grid (T, G, B). Nothing without any."""
    token = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    own = (clamped_past(past_length_ptr, batch, T, C) + token) // block_size
    limit = topk - 1 - init_blocks
    count = chosen_blocks(own, init_blocks, window_size // block_size, limit)
    if (tl.load(context_length_ptr + batch) < dense_len) | (count == 0):
        return
    heads_per_group = num_heads // num_kv_heads
    o_head = tl.arange(0, GROUP_ROWS)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    m_head = o_head < heads_per_group
    row = batch * T + token
    group_head = batch * num_kv_heads + group
    to_head = (group * heads_per_group + o_head)[:, None] * head_dim + o_d[None, :]
    q_ptr = qkvg_ptr + row * (2 * (num_heads + num_kv_heads) * head_dim)
    q = tl.load(q_ptr + to_head, mask=m_head[:, None], other=0.0)
    to_y = y_ptr + row * num_heads * head_dim + to_head
    o = tl.load(to_y, mask=m_head[:, None], other=0.0).to(tl.float32)
    largest = tl.load(log_sum_ptr + (group_head * T + token) * GROUP_ROWS + o_head, mask=m_head, other=0.0)
    total = tl.full((GROUP_ROWS,), 1.0, tl.float32)

    chosen_ptr += (group_head * T + token) * limit
    k_ptr = k_cache_ptr + group_head * C * head_dim
    v_ptr = v_cache_ptr + group_head * C * head_dim
    scale = log2_scale(scale)
    tiles = tl.cdiv(block_size, BLOCK_N)
    for i in range(count * tiles):
        in_block = i % tiles * BLOCK_N + o_n
        # Clamped, so that no content of `chosen` leads out of the cache.
        block = tl.minimum(tl.maximum(tl.load(chosen_ptr + i // tiles), 0), own)
        m_n = in_block < block_size
        cached = (block * block_size + in_block).to(tl.int64)[:, None] * head_dim + o_d[None, :]
        k = tl.load(k_ptr + cached, mask=m_n[:, None], other=0.0)
        v = tl.load(v_ptr + cached, mask=m_n[:, None], other=0.0)
        largest, total, o = attend_tile(q, k, v, m_n[None, :], largest, total, o, scale)
    gate = tl.load(q_ptr + (num_heads + 2 * num_kv_heads) * head_dim + to_head, mask=m_head[:, None], other=0.0)
    y = o / total[:, None] * tl.sigmoid(gate.to(tl.float32))
    tl.store(to_y, y.to(y_ptr.dtype.element_ty), mask=m_head[:, None])
