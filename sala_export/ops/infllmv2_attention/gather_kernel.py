"""Stage 2 over a chunk, second part: tokens that have chosen blocks go on with these from where attend has stopped.

A tile is UNION_T neighbouring tokens of one key head. Where they have many chosen blocks in common, one program reads
the union of their lists and computes all rows of the tile with every block of it. Elsewhere each token has a program,
which reads and computes the token's own list. Both kernels are launched, and each tile's sizes tell them which of the
two serves it. Logits are in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .attend_kernel import attend_tile, attend_whole_tile, positive_scale
from .positions import chosen_blocks, clamped_past, load_queries, log2_scale


@triton.jit
def union_serves(entries: tl.tensor, chosen: tl.tensor, UNION_LIMIT: tl.constexpr) -> tl.tensor:
    """True if a union of so many entries is read at once, given how many its tokens have `chosen` in all."""
    return entries * 100 <= chosen * UNION_LIMIT


@triton.jit
def chosen_in_tile(
    first_t: tl.tensor,
    past: tl.tensor,
    T: tl.tensor,
    block_size: tl.constexpr,
    window_size: tl.tensor,
    init_blocks: tl.tensor,
    limit: tl.tensor,
    UNION_T: tl.constexpr,
) -> tl.tensor:
    """How many blocks the tokens of a tile have chosen, each counted by itself."""
    t = first_t + tl.arange(0, UNION_T)
    count = chosen_blocks((past + t) // block_size, init_blocks, window_size // block_size, limit)
    return tl.sum(tl.where(t < T, count, 0))


@triton.jit
def load_parts(pointers: tl.tensor, m_row: tl.tensor, WIDTH: tl.constexpr, PARTS: tl.constexpr) -> tl.tuple:
    """A tile of PARTS x WIDTH columns as a tuple of its parts; `pointers` [R, WIDTH] are those of the first."""
    parts = tl.tuple(())
    for part in tl.static_range(PARTS):
        parts += (tl.load(pointers + part * WIDTH, mask=m_row[:, None], other=0.0),)
    return parts


@triton.jit
def attend_rows(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tuple,
    takes: tl.tensor,
    m_n: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    o: tl.tuple,
    scale: tl.tensor,
    PARTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tuple]:
    """One turn of the running softmax for the rows that take part; `takes` [R], `m_n` [N] of which one at least is set.

    The other rows keep their state to the bit. `v` and `o` are tuples of column parts, `scale` >= 0.
    """
    product = tl.where(m_n[None, :], tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
    larger = tl.where(takes, tl.maximum(largest, scale * tl.max(product, axis=1)), largest)
    shrink = tl.exp2(largest - larger)
    # One number per row keeps the others out: a weight of theirs is exp2(-inf) = 0.
    shift = tl.where(takes, larger, float("inf"))
    p = tl.exp2(scale * product - shift[:, None])
    total = total * shrink + tl.sum(p, axis=1)
    new = tl.tuple(())
    for part in tl.static_range(PARTS):
        new += (tl.dot(p.to(k.dtype), v[part], o[part] * shrink[:, None], input_precision="ieee"),)
    return larger, total, new


@any_size_kernel
def infllmv2_gather_union_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    union_blocks_ptr: tl.tensor,
    union_size_ptr: tl.tensor,
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
    UNION_T: tl.constexpr,
    UNION_LIMIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Attention of UNION_T tokens to the union of their chosen blocks, and the gate; grid (T / UNION_T, G, B).

    An entry of the union is block << UNION_T | mask; bit j of the mask is set if token j of the tile has chosen the
    block. Nothing happens to tiles without chosen blocks, nor to those that `union_serves` leaves to the other kernel.
    """
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if tl.load(context_length_ptr + batch) < dense_len:
        return
    first_t = tl.program_id(0) * UNION_T
    past = clamped_past(past_length_ptr, batch, T, C)
    limit = topk - 1 - init_blocks
    chosen = chosen_in_tile(first_t, past, T, block_size, window_size, init_blocks, limit, UNION_T)
    if chosen == 0:
        return
    group_head = batch * num_kv_heads + group
    entries = tl.load(union_size_ptr + group_head * T + first_t)
    if not union_serves(entries, chosen, UNION_LIMIT):
        return

    WIDTH: tl.constexpr = min(VALUE_COLUMNS, head_dim)
    PARTS: tl.constexpr = head_dim // WIDTH
    o_row = tl.arange(0, UNION_T * GROUP_ROWS)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, WIDTH)
    o_head = o_row % GROUP_ROWS
    o_token = o_row // GROUP_ROWS
    o_t = first_t + o_token
    row = batch * T + tl.minimum(o_t, T - 1)
    own = (past + o_t) // block_size
    goes_on = chosen_blocks(own, init_blocks, window_size // block_size, limit) > 0
    m_row = (o_t < T) & (o_head < num_heads // num_kv_heads) & goes_on
    q = load_queries(qkvg_ptr, row, group, num_heads, num_kv_heads, head_dim, GROUP_ROWS)
    q, scale = positive_scale(q, log2_scale(scale))
    head = (group * (num_heads // num_kv_heads) + o_head)[:, None] * head_dim + o_d[None, :]
    to_y = y_ptr + row[:, None] * num_heads * head_dim + head
    local = load_parts(to_y, m_row, WIDTH, PARTS)
    o = tl.tuple(())
    for part in tl.static_range(PARTS):
        o += (local[part].to(tl.float32),)
    largest = tl.load(log_sum_ptr + (group_head * T + o_t) * GROUP_ROWS + o_head, mask=m_row, other=0.0)
    total = tl.full((UNION_T * GROUP_ROWS,), 1.0, tl.float32)

    union_blocks_ptr += (group_head * T + first_t) * SLOTS
    in_keys = o_n[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
    in_values = o_n[:, None] * head_dim + o_d[None, :]
    # All chosen blocks are before the tile's last own block. No content of a workspace leads out of its buffers.
    last = (past + tl.minimum(first_t + UNION_T, T) - 1) // block_size - 1
    entries = tl.minimum(entries, chosen)
    tiles = tl.cdiv(block_size, BLOCK_N)
    entry = tl.load(union_blocks_ptr)
    for i in range(entries * tiles):
        # One turn ahead, so that no copy waits for the list.
        next_entry = tl.load(union_blocks_ptr + tl.minimum((i + 1) // tiles, entries - 1))
        first_n = i % tiles * BLOCK_N
        m_n = first_n + o_n < block_size
        block = tl.minimum(tl.maximum(entry >> UNION_T, 0), last)
        cached = (group_head * C + block * block_size + first_n) * head_dim
        k = tl.load(k_cache_ptr + cached + in_keys, mask=m_n[:, None], other=0.0)
        v = load_parts(v_cache_ptr + cached + in_values, m_n, WIDTH, PARTS)
        takes = ((entry >> o_token) & 1) > 0
        largest, total, o = attend_rows(q, k, v, takes, m_n, largest, total, o, scale, PARTS)
        entry = next_entry
    to_gate = (row * (2 * (num_heads + num_kv_heads)) + num_heads + 2 * num_kv_heads)[:, None] * head_dim + head
    gates = load_parts(qkvg_ptr + to_gate, m_row, WIDTH, PARTS)
    for part in tl.static_range(PARTS):
        y = o[part] / total[:, None] * tl.sigmoid(gates[part].to(tl.float32))
        tl.store(to_y + part * WIDTH, y.to(y_ptr.dtype.element_ty), mask=m_row[:, None])


@any_size_kernel
def infllmv2_gather_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    union_size_ptr: tl.tensor,
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
    UNION_T: tl.constexpr,
    UNION_LIMIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
) -> None:
    """Attention of one token to its chosen blocks, and the gate; grid (T, G, B).

    Nothing happens to a token without chosen blocks, nor in tiles that `union_serves` leaves to the other kernel.
    """
    token = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    past = clamped_past(past_length_ptr, batch, T, C)
    own = (past + token) // block_size
    limit = topk - 1 - init_blocks
    count = chosen_blocks(own, init_blocks, window_size // block_size, limit)
    if (tl.load(context_length_ptr + batch) < dense_len) | (count == 0):
        return
    group_head = batch * num_kv_heads + group
    first_t = token // UNION_T * UNION_T
    chosen = chosen_in_tile(first_t, past, T, block_size, window_size, init_blocks, limit, UNION_T)
    if union_serves(tl.load(union_size_ptr + group_head * T + first_t), chosen, UNION_LIMIT):
        return

    heads_per_group = num_heads // num_kv_heads
    o_head = tl.arange(0, GROUP_ROWS)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    m_head = o_head < heads_per_group
    row = batch * T + token
    to_head = (group * heads_per_group + o_head)[:, None] * head_dim + o_d[None, :]
    q_ptr = qkvg_ptr + row * (2 * (num_heads + num_kv_heads) * head_dim)
    q = tl.load(q_ptr + to_head, mask=m_head[:, None], other=0.0)
    q, scale = positive_scale(q, log2_scale(scale))
    to_y = y_ptr + row * num_heads * head_dim + to_head
    o = tl.load(to_y, mask=m_head[:, None], other=0.0).to(tl.float32)
    largest = tl.load(log_sum_ptr + (group_head * T + token) * GROUP_ROWS + o_head, mask=m_head, other=0.0)
    total = tl.full((GROUP_ROWS,), 1.0, tl.float32)

    chosen_ptr += (group_head * T + token) * limit
    in_tile = o_n[:, None] * head_dim + o_d[None, :]
    tiles = tl.cdiv(block_size, BLOCK_N)
    block = tl.load(chosen_ptr)
    for i in range(count * tiles):
        # One turn ahead, so that no copy waits for the list.
        next_block = tl.load(chosen_ptr + tl.minimum((i + 1) // tiles, count - 1))
        first_n = i % tiles * BLOCK_N
        # Chosen blocks are before the own one. Clamped, so that no content of `chosen` leads out of the cache.
        block = tl.minimum(tl.maximum(block, 0), own - 1)
        cached = (group_head * C + block * block_size + first_n) * head_dim
        if block_size % BLOCK_N == 0:
            k = tl.load(k_cache_ptr + cached + in_tile)
            v = tl.load(v_cache_ptr + cached + in_tile)
            largest, total, o = attend_whole_tile(q, k, v, largest, total, o, scale)
        else:
            m_n = first_n + o_n < block_size
            k = tl.load(k_cache_ptr + cached + in_tile, mask=m_n[:, None], other=0.0)
            v = tl.load(v_cache_ptr + cached + in_tile, mask=m_n[:, None], other=0.0)
            largest, total, o = attend_tile(q, k, v, m_n[None, :], largest, total, o, scale)
        block = next_block
    gate = tl.load(q_ptr + (num_heads + 2 * num_kv_heads) * head_dim + to_head, mask=m_head[:, None], other=0.0)
    y = o / total[:, None] * tl.sigmoid(gate.to(tl.float32))
    tl.store(to_y, y.to(y_ptr.dtype.element_ty), mask=m_head[:, None])
