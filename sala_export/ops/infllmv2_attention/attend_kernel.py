"""Stage 2 over a chunk, first part: the forced blocks of a tile of tokens, or in dense mode all keys.

R rows = BLOCK_T tokens x GROUP_ROWS heads of one key head, D head dim. Neighbouring tokens share the initial and the
local blocks, so that these are read once per tile of R rows. A sparse token that has chosen blocks goes on in
`gather_kernel.py`: its output so far waits in `y`, rounded to X, beside its log2-sum-exp. Logits are in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .positions import chosen_blocks, clamped_past, load_queries, log2_scale


@triton.jit
def positive_scale(q: tl.tensor, scale: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Queries and a scale >= 0 that give the same logits, so that the largest product is the largest logit."""
    return tl.where(scale < 0, -q, q), tl.abs(scale)


@triton.jit
def attend_whole_tile(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, largest: tl.tensor, total: tl.tensor, o: tl.tensor, scale: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """`attend_tile` where every row sees every key; `scale` >= 0."""
    product = tl.dot(q, tl.trans(k), input_precision="ieee")
    larger = tl.maximum(largest, scale * tl.max(product, axis=1))
    shrink = tl.exp2(largest - larger)
    p = tl.exp2(scale * product - larger[:, None])
    total = total * shrink + tl.sum(p, axis=1)
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")
    return larger, total, o


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
    end = past + tl.minimum(first_t + BLOCK_T, T)
    # First key of each row's local blocks, of the first row's and of the last row's.
    local = tl.maximum(position // block_size - window_blocks, 0) * block_size
    first_local = tl.maximum((past + first_t) // block_size - window_blocks, 0) * block_size
    last_local = tl.maximum((end - 1) // block_size - window_blocks, 0) * block_size
    # Initial blocks before the local ones, which are read apart.
    init_end = tl.minimum(init_blocks * block_size, first_local)
    initial_tiles = init_end // BLOCK_N
    # Local tiles of which some row does not see the first keys, then those that all rows see to their last key.
    head_tiles = tl.cdiv(last_local - first_local, BLOCK_N)
    whole_tiles = tl.maximum((past + first_t + 1 - first_local) // BLOCK_N - head_tiles, 0)

    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    k_ptr = k_cache_ptr + (batch * num_kv_heads + group) * C * head_dim
    v_ptr = v_cache_ptr + (batch * num_kv_heads + group) * C * head_dim
    q, scale = positive_scale(q, log2_scale(scale))
    largest = tl.full((BLOCK_T * GROUP_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T * GROUP_ROWS,), tl.float32)
    o = tl.zeros((BLOCK_T * GROUP_ROWS, head_dim), tl.float32)
    to_whole = first_local + (head_tiles - initial_tiles) * BLOCK_N
    for i in range(initial_tiles + whole_tiles):
        key = i * BLOCK_N + tl.where(i < initial_tiles, 0, to_whole) + o_n
        cached = key.to(tl.int64)[:, None] * head_dim + o_d[None, :]
        k = tl.load(k_ptr + cached)
        v = tl.load(v_ptr + cached)
        largest, total, o = attend_whole_tile(q, k, v, largest, total, o, scale)
    # What is left: the end of the initial blocks, local tiles before the whole ones, local tiles after them.
    initial_tail = tl.cdiv(init_end, BLOCK_N) - initial_tiles
    tail_tiles = tl.cdiv(end - first_local, BLOCK_N) - head_tiles - whole_tiles
    for i in range(initial_tail + head_tiles + tail_tiles):
        is_initial = i < initial_tail
        tile = i - initial_tail
        tile = tl.where(tile < head_tiles, tile, tile + whole_tiles)
        key = tl.where(is_initial, initial_tiles * BLOCK_N, first_local + tile * BLOCK_N) + o_n
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
