"""InfLLMv2Attention on the GPU. Equations: README.md; launches: `KERNELS` at the end.

B batch, T tokens of the chunk, G key heads, D head dim, N tokens in the cache after the chunk; X the activation type.

Four launches in order: append, compress, select, attend. All of a group's query heads go through one dot tile of
GROUP_ROWS rows, the smallest that a tensor core takes; smaller groups leave rows unused. Only the indices of the taken
blocks reach device memory: scores live in registers, one tile of blocks at a time. Loops over the context are bounded
by `past_length`, read on the device; the host cannot check it, so every kernel clamps it to what the caches hold.

Shared memory: in select q (BLOCK_T GROUP_ROWS D) and a tile of compressed keys (BLOCK_B D) per stage, 64 to 96 KiB at
D = 128 in bfloat16; in attend a tile of keys and one of values (BLOCK_N D each) per stage, 37 KiB.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.contract import Rule
from ..common.launch import KernelSet, Launch, Tile, Workspace, same_tile
from .top_blocks import block_keys, key_blocks, merge_best

_GROUP_ROWS = 16
_MAX_TAKEN = 128

_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _clamped_past(past_length_ptr: tl.tensor, batch: tl.tensor, T: tl.tensor, C: tl.tensor) -> tl.tensor:
    """past_length of a batch row, within [0, C - T]: whatever was passed, no kernel leaves the caches."""
    return tl.minimum(tl.maximum(tl.load(past_length_ptr + batch), 0), C - T)


@triton.jit
def infllmv2_append_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Copy the chunk's keys and values into the caches; grid (T / BLOCK_T, G, B)."""
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    past = _clamped_past(past_length_ptr, batch, T, C)
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, head_dim)
    m_t = (o_t < T)[:, None]
    row_stride = 2 * (num_heads + num_kv_heads) * head_dim
    k_ptr = qkvg_ptr + (batch * T + o_t[:, None]) * row_stride + (num_heads + group) * head_dim + o_d[None, :]
    to_row = ((batch * num_kv_heads + group) * C + past + o_t[:, None]) * head_dim + o_d[None, :]
    tl.store(k_cache_ptr + to_row, tl.load(k_ptr, mask=m_t), mask=m_t)
    tl.store(v_cache_ptr + to_row, tl.load(k_ptr + num_kv_heads * head_dim, mask=m_t), mask=m_t)


@triton.jit
def _compress_window(
    keys_ptr: tl.tensor,
    compressed_ptr: tl.tensor,
    ordinal: tl.tensor,
    past: tl.tensor,
    end: tl.tensor,
    size: tl.tensor,
    stride: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Write the `ordinal`-th of the windows that end in (past, end], if there are so many."""
    window = _complete_windows(past, size, stride) + ordinal
    if window < _complete_windows(end, size, stride):
        o_n = tl.arange(0, BLOCK_N)
        o_d = tl.arange(0, head_dim)
        total = tl.zeros((BLOCK_N, head_dim), tl.float32)
        for start in range(0, size, BLOCK_N):
            row = window.to(tl.int64) * stride + start + o_n
            keys = tl.load(
                keys_ptr + row[:, None] * head_dim + o_d[None, :], mask=(start + o_n < size)[:, None], other=0.0
            )
            total += keys.to(tl.float32)
        mean = tl.sum(total, axis=0) / size
        tl.store(compressed_ptr + window.to(tl.int64) * head_dim + o_d, mean.to(compressed_ptr.dtype.element_ty))


@triton.jit
def _complete_windows(tokens: tl.tensor, size: tl.tensor, stride: tl.tensor) -> tl.tensor:
    """Windows of `size` keys every `stride` keys that fit in the first `tokens` keys."""
    return tl.maximum(tokens - size + stride, 0) // stride


@triton.jit
def infllmv2_compress_kernel(
    past_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    C1: tl.tensor,
    C2: tl.tensor,
    num_kv_heads: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Means of the windows that the chunk completes, at most T / stride of them; grid (T / kernel_stride, G, B)."""
    ordinal = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    head = batch * num_kv_heads + tl.program_id(1)
    past = _clamped_past(past_length_ptr, batch, T, C)
    end = past + T
    keys_ptr = k_cache_ptr + head * C * head_dim
    k1_ptr = k1_cache_ptr + head * C1 * head_dim
    k2_ptr = k2_cache_ptr + head * C2 * head_dim
    _compress_window(keys_ptr, k1_ptr, ordinal, past, end, kernel_size, kernel_stride, head_dim, BLOCK_N)
    _compress_window(keys_ptr, k2_ptr, ordinal, past, end, 4 * kernel_size, 4 * kernel_stride, head_dim, BLOCK_N)


@triton.jit
def _log_sum_exp_of_k2(
    q: tl.tensor,
    k2_ptr: tl.tensor,
    visible: tl.tensor,
    last_visible: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """m and 1 / Z [rows] of q [rows, D] over the first `visible` [rows] rows of k2; (0, 0) where none is visible."""
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    for start in range(0, last_visible, BLOCK_N):
        row = start + o_n
        k2_row_ptr = k2_ptr + row[:, None].to(tl.int64) * head_dim + o_d[None, :]
        k2 = tl.load(k2_row_ptr, mask=(row < last_visible)[:, None], other=0.0)
        b = scale * tl.dot(q, tl.trans(k2), input_precision="ieee")
        b = tl.where(row[None, :] < visible[:, None], b, float("-inf"))
        larger = tl.maximum(largest, tl.max(b, axis=1))
        # Rows that see nothing yet have -inf here, whose difference with itself is NaN.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(b - shift[:, None]), axis=1)
        largest = larger
    sees_any = visible > 0
    return tl.where(sees_any, largest, 0.0), tl.where(sees_any, 1.0 / tl.where(sees_any, total, 1.0), 0.0)


@triton.jit
def _group_probability(
    q: tl.tensor,
    k1_ptr: tl.tensor,
    index: tl.tensor,
    visible: tl.tensor,
    last_visible: tl.tensor,
    m: tl.tensor,
    inverse_z: tl.tensor,
    is_head: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
) -> tl.tensor:
    """P [tokens, N] of the compressed keys `index` [N]; 0 for those outside 0 .. visible - 1.

    Every value depends on q and its own key alone, in the same order of operations wherever in a tile that key stands:
    a key shared by two blocks gives both the same bits.
    """
    o_d = tl.arange(0, head_dim)
    m_index = (index >= 0) & (index < last_visible)
    k1_row_ptr = k1_ptr + index[:, None].to(tl.int64) * head_dim + o_d[None, :]
    k1 = tl.load(k1_row_ptr, mask=m_index[:, None], other=0.0)
    a = scale * tl.dot(q, tl.trans(k1), input_precision="ieee")
    sees = (index[None, :] >= 0) & (index[None, :] < visible[:, None]) & is_head[:, None]
    p = tl.where(sees, tl.exp(a - m[:, None]) * inverse_z[:, None], 0.0)
    p = tl.reshape(p, (q.shape[0] // GROUP_ROWS, GROUP_ROWS, index.shape[0]))
    return tl.minimum(tl.sum(p, axis=1), _LARGEST_FLOAT)


@triton.jit
def infllmv2_select_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    taken_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    C1: tl.tensor,
    C2: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    scale: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.tensor,
    block_size: tl.tensor,
    topk: tl.tensor,
    window_size: tl.tensor,
    init_blocks: tl.tensor,
    dense_len: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
) -> None:
    """Write the taken blocks of BLOCK_T tokens, best first, then -1; grid (T / BLOCK_T, G, B). Nothing if dense."""
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if tl.load(context_length_ptr + batch) < dense_len:
        return
    past = _clamped_past(past_length_ptr, batch, T, C)
    heads_per_group = num_heads // num_kv_heads
    first_t = tl.program_id(0) * BLOCK_T
    # Rows after the chunk repeat its last token: they must not look beyond the valid part of the caches.
    o_t = tl.minimum(first_t + tl.arange(0, BLOCK_T), T - 1)
    o_row = tl.arange(0, BLOCK_T * GROUP_ROWS)
    row_t = tl.minimum(first_t + o_row // GROUP_ROWS, T - 1)
    is_head = o_row % GROUP_ROWS < heads_per_group

    o_d = tl.arange(0, head_dim)
    row_stride = 2 * (num_heads + num_kv_heads) * head_dim
    q_head = group * heads_per_group + o_row % GROUP_ROWS
    q_row_ptr = qkvg_ptr + ((batch * T + row_t) * row_stride + q_head * head_dim)[:, None] + o_d[None, :]
    q = tl.load(q_row_ptr, mask=is_head[:, None], other=0.0)
    k1_ptr = k1_cache_ptr + (batch * num_kv_heads + group) * C1 * head_dim
    k2_ptr = k2_cache_ptr + (batch * num_kv_heads + group) * C2 * head_dim

    last = past + tl.minimum(first_t + BLOCK_T, T) - 1
    visible_2 = _complete_windows(past + row_t + 1, 4 * kernel_size, 4 * kernel_stride)
    last_visible_2 = _complete_windows(last + 1, 4 * kernel_size, 4 * kernel_stride)
    m, inverse_z = _log_sum_exp_of_k2(q, k2_ptr, visible_2, last_visible_2, scale, head_dim, BLOCK_N)

    visible_1 = tl.where(visible_2 > 0, _complete_windows(past + row_t + 1, kernel_size, kernel_stride), 0)
    last_visible_1 = _complete_windows(last + 1, kernel_size, kernel_stride)
    ratio = block_size // kernel_stride
    own = (past + o_t) // block_size
    best = tl.full((BLOCK_T, BLOCK_B), -1, tl.int64)
    for start in range(0, last // block_size + 1, BLOCK_B):
        block = start + tl.arange(0, BLOCK_B)
        score = tl.zeros((BLOCK_T, BLOCK_B), tl.float32)
        for phase in range(-1, ratio):
            index = ratio * block + phase
            p = _group_probability(
                q, k1_ptr, index, visible_1, last_visible_1, m, inverse_z, is_head, scale, head_dim, GROUP_ROWS
            )
            score = tl.maximum(score, p)
        forced = (block < init_blocks)[None, :] | (block[None, :] >= own[:, None] - window_size // block_size)
        score = tl.where(forced, float("inf"), score)
        keys = tl.where(block[None, :] <= own[:, None], block_keys(score, block), -1)
        best = merge_best(best, keys)

    taken_blocks = topk + window_size // block_size
    o_taken = tl.arange(0, BLOCK_B)
    store_t = first_t + tl.arange(0, BLOCK_T)
    to_row = ((batch * num_kv_heads + group) * T + store_t) * taken_blocks
    m_taken = (store_t < T)[:, None] & (o_taken < taken_blocks)[None, :]
    tl.store(taken_ptr + to_row[:, None] + o_taken[None, :], key_blocks(best), mask=m_taken)


@triton.jit
def infllmv2_attend_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    taken_ptr: tl.tensor,
    y_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    scale: tl.tensor,
    block_size: tl.tensor,
    topk: tl.tensor,
    window_size: tl.tensor,
    dense_len: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
) -> None:
    """Softmax attention of one token and key head over the taken blocks, or over all; gated. Grid (T, G, B)."""
    token = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    position = _clamped_past(past_length_ptr, batch, T, C) + token
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    heads_per_group = num_heads // num_kv_heads
    o_head = tl.arange(0, GROUP_ROWS)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    m_head = (o_head < heads_per_group)[:, None]
    row = batch * T + token
    to_head = (group * heads_per_group + o_head)[:, None] * head_dim + o_d[None, :]
    q_ptr = qkvg_ptr + row * (2 * (num_heads + num_kv_heads) * head_dim)
    q = tl.load(q_ptr + to_head, mask=m_head, other=0.0)
    head_row = (batch * num_kv_heads + group) * C

    taken_blocks = topk + window_size // block_size
    taken_ptr += ((batch * num_kv_heads + group) * T + token) * taken_blocks
    own = position // block_size
    # Taken blocks are stored first, and there are as many as the token sees up to the limit.
    count = tl.where(is_sparse, tl.minimum(taken_blocks, own + 1), own + 1)
    largest = tl.full((GROUP_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_ROWS,), tl.float32)
    o = tl.zeros((GROUP_ROWS, head_dim), tl.float32)
    for i in range(count):
        block = tl.where(is_sparse, tl.load(taken_ptr + i, mask=is_sparse, other=0), i)
        # Every tile holds at least one visible key, so `largest` is finite from the first on.
        end = tl.minimum(block * block_size + block_size, position + 1)
        for start in range(block * block_size, end, BLOCK_N):
            m_n = start + o_n < end
            cached = (head_row + start + o_n)[:, None] * head_dim + o_d[None, :]
            k = tl.load(k_cache_ptr + cached, mask=m_n[:, None], other=0.0)
            v = tl.load(v_cache_ptr + cached, mask=m_n[:, None], other=0.0)
            logits = tl.where(m_n[None, :], scale * tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
            larger = tl.maximum(largest, tl.max(logits, axis=1))
            shrink = tl.exp(largest - larger)
            p = tl.exp(logits - larger[:, None])
            total = total * shrink + tl.sum(p, axis=1)
            o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")
            largest = larger
    gate_ptr = q_ptr + (num_heads + 2 * num_kv_heads) * head_dim
    gate = tl.sigmoid(tl.load(gate_ptr + to_head, mask=m_head, other=0.0).to(tl.float32))
    y = o / total[:, None] * gate
    tl.store(y_ptr + row * num_heads * head_dim + to_head, y.to(y_ptr.dtype.element_ty), mask=m_head)


def _sequence(append_tokens: int, select_tokens: int, select_stages: int) -> tuple[Launch, ...]:
    """The four launches, with the tokens per program of those that tile the chunk."""
    return (
        Launch(
            kernel=infllmv2_append_kernel,
            grid=("cdiv(T, BLOCK_T)", "num_kv_heads", "B"),
            tiles=same_tile(Tile(constexprs={"BLOCK_T": append_tokens}, num_warps=4, num_stages=1)),
        ),
        Launch(
            kernel=infllmv2_compress_kernel,
            grid=("cdiv(T, kernel_stride)", "num_kv_heads", "B"),
            tiles=same_tile(Tile(constexprs={"BLOCK_N": 16}, num_warps=4, num_stages=1)),
        ),
        Launch(
            kernel=infllmv2_select_kernel,
            grid=("cdiv(T, BLOCK_T)", "num_kv_heads", "B"),
            tiles=same_tile(
                Tile(
                    constexprs={
                        "BLOCK_T": select_tokens,
                        "BLOCK_N": 64,
                        "BLOCK_B": _MAX_TAKEN,
                        "GROUP_ROWS": _GROUP_ROWS,
                    },
                    num_warps=8,
                    num_stages=select_stages,
                )
            ),
        ),
        Launch(
            kernel=infllmv2_attend_kernel,
            grid=("T", "num_kv_heads", "B"),
            tiles=same_tile(Tile(constexprs={"BLOCK_N": 32, "GROUP_ROWS": _GROUP_ROWS}, num_warps=4, num_stages=3)),
        ),
    )


KERNELS = KernelSet(
    workspaces=(
        Workspace(
            name="taken", dtype="int32", shape=("B", "num_kv_heads", "T", "topk + fdiv(window_size, block_size)")
        ),
    ),
    prefill=_sequence(append_tokens=16, select_tokens=8, select_stages=2),
    decode=_sequence(append_tokens=1, select_tokens=1, select_stages=3),
    variant_attributes=("head_dim",),
    aot_variants=({"head_dim": 64}, {"head_dim": 128}),
    aot_dtypes=("bfloat16", "float16"),
    rules=(
        Rule(
            left="fdiv(num_heads, num_kv_heads)",
            relation="<=",
            right=str(_GROUP_ROWS),
            doc="the query heads of a key head share one dot tile",
        ),
        Rule(
            left="topk + fdiv(window_size, block_size)",
            relation="<=",
            right=str(_MAX_TAKEN),
            doc="the taken blocks are kept in registers",
        ),
    ),
)
