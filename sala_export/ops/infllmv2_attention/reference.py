"""InfLLMv2Attention in plain PyTorch: the truth that every other implementation is compared with.

B batch, T tokens of the chunk, N tokens in the cache after it, G key heads, R query heads per key head, D head dim,
n1 and n2 compressed keys, nb blocks. Equations: README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SCORE_BUDGET_BYTES = 256 * 2**20
"""Bound on the largest intermediate, [G, R, rows, N] of one tile of rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What stage 1 decided for some rows of one batch entry."""

    taken: Tensor
    """bool [G, rows, nb]: the blocks that the row attends to."""
    score: Tensor
    """fp32 [G, rows, nb]: the block score; +inf where forced, -inf after the row's own block."""


def infllmv2_attention(
    qkvg: Tensor,
    past_length: Tensor,
    context_length: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k1_cache: Tensor,
    k2_cache: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    kernel_size: int,
    kernel_stride: int,
    block_size: int,
    topk: int,
    window_size: int,
    init_blocks: int,
    dense_len: int,
) -> Tensor:
    """Output `y` as in schema.py. **The four caches are updated in place.**

    Computes in fp32, or in fp64 if the inputs are fp64. Memory beyond the inputs is bounded at any context length.
    """
    batch, tokens, _ = qkvg.shape
    compute = torch.promote_types(torch.float32, qkvg.dtype)
    widths = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim, num_heads * head_dim]
    q, k, v, gate = torch.split(qkvg, widths, dim=-1)
    q = q.view(batch, tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    k = k.view(batch, tokens, num_kv_heads, head_dim).transpose(1, 2)
    v = v.view(batch, tokens, num_kv_heads, head_dim).transpose(1, 2)

    y = torch.empty(batch, tokens, num_heads * head_dim, dtype=qkvg.dtype, device=qkvg.device)
    for b in range(batch):
        past = int(past_length[b])
        end = past + tokens
        k_cache[b, :, past:end] = k[b]
        v_cache[b, :, past:end] = v[b]
        _compress(k_cache[b], k1_cache[b], past, end, kernel_size, kernel_stride)
        _compress(k_cache[b], k2_cache[b], past, end, 4 * kernel_size, 4 * kernel_stride)
        keys, values = k_cache[b, :, :end].to(compute), v_cache[b, :, :end].to(compute)
        sparse = int(context_length[b]) >= dense_len
        tile = max(1, _SCORE_BUDGET_BYTES // (num_heads * end * keys.element_size()))
        for start in range(0, tokens, tile):
            rows = slice(start, min(start + tile, tokens))
            q_rows = q[b, rows].permute(1, 2, 0, 3).to(compute)  # [G, R, rows, D]
            seen = past + rows.stop  # no row of the tile looks further
            positions = torch.arange(past + rows.start, seen, device=q.device)
            if sparse:
                taken = select_blocks(
                    q_rows,
                    k1_cache[b],
                    k2_cache[b],
                    positions,
                    scale=scale,
                    kernel_size=kernel_size,
                    kernel_stride=kernel_stride,
                    block_size=block_size,
                    topk=topk,
                    window_size=window_size,
                    init_blocks=init_blocks,
                ).taken
            else:
                taken = None
            o = _attend(q_rows, keys[:, :seen], values[:, :seen], positions, taken, scale, block_size)
            o = o.permute(2, 0, 1, 3).reshape(-1, num_heads * head_dim)
            y[b, rows] = (o * torch.sigmoid(gate[b, rows].to(compute))).to(y.dtype)
    return y


def _compress(keys: Tensor, compressed: Tensor, past: int, end: int, size: int, stride: int) -> None:
    """Write every window that ends in [past, end) into `compressed` [G, n, D]; keys [G, capacity, D]."""
    first = max(0, (past - size) // stride + 1)
    last = max(0, (end - size) // stride + 1)
    if last > first:
        compute = torch.promote_types(torch.float32, keys.dtype)
        windows = keys[:, first * stride : (last - 1) * stride + size].to(compute).unfold(1, size, stride)
        compressed[:, first:last] = windows.mean(-1).to(compressed.dtype)


def select_blocks(
    q: Tensor,
    k1_cache: Tensor,
    k2_cache: Tensor,
    positions: Tensor,
    *,
    scale: float,
    kernel_size: int,
    kernel_stride: int,
    block_size: int,
    topk: int,
    window_size: int,
    init_blocks: int,
) -> Selection:
    """Stage 1 for rows at ascending `positions` [rows] of one sequence; q [G, R, rows, D], caches [G, capacity, D]."""
    end = int(positions[-1]) + 1
    n1 = max(0, (end - kernel_size) // kernel_stride + 1)
    n2 = max(0, (end - 4 * kernel_size) // (4 * kernel_stride) + 1)
    blocks = (end - 1) // block_size + 1
    group_p = _group_probabilities(q, k1_cache[:, :n1], k2_cache[:, :n2], positions, scale, kernel_size, kernel_stride)

    ratio = block_size // kernel_stride
    padded = group_p.new_zeros(*group_p.shape[:-1], ratio * blocks + 1)
    kept = min(n1, ratio * blocks)
    padded[..., 1 : 1 + kept] = group_p[..., :kept]
    score = torch.nn.functional.max_pool1d(padded, ratio + 1, stride=ratio)  # [G, rows, nb]

    own = (positions // block_size)[:, None]
    block = torch.arange(blocks, device=q.device)[None, :]
    forced = (block < init_blocks) | (block >= own - window_size // block_size)
    score = score.masked_fill(forced, float("inf")).masked_fill(block > own, float("-inf"))
    # A stable descending sort gives equal scores to the lower block index.
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    take = min(blocks, topk + window_size // block_size)
    taken = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order[..., :take], True)
    return Selection(taken=taken & (block <= own), score=score)


def _group_probabilities(
    q: Tensor, k1: Tensor, k2: Tensor, positions: Tensor, scale: float, kernel_size: int, kernel_stride: int
) -> Tensor:
    """P [G, rows, n1]: softmax-like weights of k1, normalised by k2 and summed over the heads of a group."""

    def scores(keys: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
        last_key = torch.arange(keys.shape[1], device=q.device) * stride + size - 1
        hidden = last_key[None, :] > positions[:, None]
        return scale * (q @ keys.to(q.dtype)[:, None].transpose(-1, -2)), hidden

    if k2.shape[1] == 0:
        return q.new_zeros(q.shape[0], q.shape[2], k1.shape[1])
    b, b_hidden = scores(k2, 4 * kernel_size, 4 * kernel_stride)
    b = b.masked_fill(b_hidden, float("-inf"))
    none_visible = b_hidden.all(-1)
    m = b.amax(-1, keepdim=True).masked_fill(none_visible[:, None], 0.0)
    z = torch.exp(b - m).sum(-1, keepdim=True)
    a, a_hidden = scores(k1, kernel_size, kernel_stride)
    p = torch.exp(a - m) / z.masked_fill(none_visible[:, None], 1.0)
    p = p.masked_fill(a_hidden | none_visible[:, None], 0.0)
    return p.sum(1).clamp(max=torch.finfo(p.dtype).max)


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, taken: Tensor | None, scale: float, block_size: int
) -> Tensor:
    """Causal softmax attention [G, R, rows, D] over keys and values [G, N, D], in `taken` blocks only if given."""
    index = torch.arange(keys.shape[1], device=q.device)
    allowed = (index[None, :] <= positions[:, None])[None]
    if taken is not None:
        allowed = allowed & taken.repeat_interleave(block_size, dim=-1)[..., : keys.shape[1]]
    logits = scale * (q @ keys[:, None].transpose(-1, -2))
    logits = logits.masked_fill(~allowed[:, None], float("-inf"))
    return torch.softmax(logits, dim=-1) @ values[:, None]
