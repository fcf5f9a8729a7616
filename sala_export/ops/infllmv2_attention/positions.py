"""Where a program stands in the context: lengths read on the device, windows, forced blocks and candidates.

T tokens of the chunk, C capacity of the caches; W = window_size / block_size. A token at position t sees its own block
t // block_size, which with the W before it and the first `init_blocks` is forced; the candidates are those between.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clamped_past(past_length_ptr: tl.tensor, batch: tl.tensor, T: tl.tensor, C: tl.tensor) -> tl.tensor:
    """past_length of a batch row, within [0, C - T]: whatever was passed, no kernel leaves the caches."""
    return tl.minimum(tl.maximum(tl.load(past_length_ptr + batch), 0), C - T)


@triton.jit
def complete_windows(tokens: tl.tensor, size: tl.tensor, stride: tl.tensor) -> tl.tensor:
    """Windows of `size` keys every `stride` keys that fit in the first `tokens` keys."""
    return tl.maximum(tokens - size + stride, 0) // stride


@triton.jit
def chosen_blocks(own: tl.tensor, init_blocks: tl.tensor, window_blocks: tl.tensor, limit: tl.tensor) -> tl.tensor:
    """How many candidates a token in block `own` takes: all of init_blocks .. own - W - 1, up to `limit`.

    Where initial and local blocks meet or overlap there is no candidate, and every visible block is forced.
    """
    return tl.minimum(tl.maximum(own - window_blocks - init_blocks, 0), limit)


@triton.jit
def split_bounds(
    first: tl.tensor, end: tl.tensor, split: tl.tensor, SPLITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Bounds of the part of first .. end - 1 that falls to one of SPLITS programs; parts differ by one at most."""
    count = tl.maximum(end - first, 0).to(tl.int64)
    lower = first + (split * count // SPLITS).to(tl.int32)
    upper = first + ((split + 1) * count // SPLITS).to(tl.int32)
    return lower, upper


@triton.jit
def load_queries(
    qkvg_ptr: tl.tensor,
    row: tl.tensor,
    group: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    head_dim: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
) -> tl.tensor:
    """Queries [rows, D] of a key head at rows `row` [rows] of qkvg, GROUP_ROWS heads in turn; 0 where there is none."""
    heads_per_group = num_heads // num_kv_heads
    o_head = tl.arange(0, row.shape[0]) % GROUP_ROWS
    o_d = tl.arange(0, head_dim)
    offset = row * (2 * (num_heads + num_kv_heads) * head_dim) + (group * heads_per_group + o_head) * head_dim
    return tl.load(qkvg_ptr + offset[:, None] + o_d[None, :], mask=(o_head < heads_per_group)[:, None], other=0.0)


@triton.jit
def log2_scale(scale: tl.tensor) -> tl.tensor:
    """Factor that turns q.k into a logit in units of log2."""
    return tl.full((), 1.4426950408889634, tl.float32) * scale
