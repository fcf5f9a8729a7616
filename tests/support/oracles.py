"""Slow, obvious restatements of both mixers, one token at a time in float64, that share nothing with the package.

Tests compare the package's references with these. They follow the model description, not the operators' own code:
a whole sequence at once, no caches, no chunks, no batch. Rounding appears only where the contract names it.

N tokens of the sequence, H query heads, G key heads, D head dim, n1 and n2 compressed keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseSizes:
    """Attributes of InfLLMv2Attention, under their contract names."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    kernel_size: int
    kernel_stride: int
    block_size: int
    topk: int
    window_size: int
    init_blocks: int
    dense_len: int

    @property
    def taken_blocks(self) -> int:
        """Blocks that a query takes, forced ones included."""
        return self.topk + self.window_size // self.block_size


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseResult:
    """What one row of InfLLMv2Attention gives; `blocks` and `margins` are per key head and empty for a dense row."""

    y: Array
    """[H * D]"""
    blocks: tuple[tuple[int, ...], ...]
    """Blocks attended to, ascending."""
    margins: tuple[float, ...]
    """1 - first refused score / last taken score; 0 for a tie, inf where nothing was refused."""


def as_float64(x: Tensor) -> Array:
    """Exact copy of a tensor of any floating type."""
    return x.detach().to(torch.float64).numpy()


def rounded(x: Array, dtype: torch.dtype) -> Array:
    """`x` rounded to `dtype` and back."""
    return as_float64(torch.from_numpy(np.asarray(x, dtype=np.float64)).to(dtype))


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / math.sqrt(float(np.mean(x * x)) + eps) * weight


def window_means(keys_ND: Array, size: int, stride: int, dtype: torch.dtype) -> Array:
    """Means of every complete window of `size` keys, rounded to the cache type; [n, D]."""
    means = []
    start = 0
    while start + size <= len(keys_ND):
        means.append(sum(keys_ND[start + i] for i in range(size)) / size)
        start += stride
    return rounded(np.array(means).reshape(len(means), keys_ND.shape[1]), dtype)


def block_scores(q_HD: Array, k1: Array, k2: Array, t: int, blocks: int, sizes: SparseSizes) -> list[float]:
    """Score of every block for the query heads `q_HD` of one key head at position t, before any is forced."""
    probability = [0.0] * len(k1)
    seen_k1 = [i for i in range(len(k1)) if sizes.kernel_stride * i + sizes.kernel_size - 1 <= t]
    seen_k2 = [j for j in range(len(k2)) if 4 * sizes.kernel_stride * j + 4 * sizes.kernel_size - 1 <= t]
    if seen_k2:
        for q_D in q_HD:
            b = sizes.scale * (k2[seen_k2] @ q_D)
            m = b.max()
            z = np.exp(b - m).sum()
            with np.errstate(over="ignore"):
                p = np.exp(sizes.scale * (k1[seen_k1] @ q_D) - m) / z
            for i, value in zip(seen_k1, p, strict=True):
                probability[i] += float(value)
    probability = [min(p, FLOAT32_MAX) for p in probability]
    ratio = sizes.block_size // sizes.kernel_stride
    scores = []
    for b in range(blocks):
        pooled = probability[max(0, ratio * b - 1) : ratio * b + ratio]
        scores.append(max(pooled, default=-math.inf))
    return scores


def choose_blocks(scores: Sequence[float], t: int, sizes: SparseSizes) -> tuple[tuple[int, ...], float]:
    """Blocks that a query at position t takes, ascending, and the margin at the cut."""
    own = t // sizes.block_size
    window = sizes.window_size // sizes.block_size

    def forced(b: int) -> bool:
        return b < sizes.init_blocks or own - window <= b <= own

    order = sorted(range(len(scores)), key=lambda b: (not forced(b), -scores[b], b))
    taken, refused = order[: sizes.taken_blocks], order[sizes.taken_blocks :]
    margin = math.inf
    if refused and refused[0] <= own:
        last, first = (math.inf if forced(b) else scores[b] for b in (taken[-1], refused[0]))
        margin = 0.0 if last == first else (1.0 - first / last)
    return tuple(sorted(b for b in taken if b <= own)), margin


def sparse_row(
    q_HD: Array, k_NGD: Array, v_NGD: Array, k1_GnD: Array, k2_GnD: Array, t: int, sizes: SparseSizes
) -> tuple[Array, list[tuple[int, ...]], list[float]]:
    """Attention of the token at position t to its blocks: output [H, D], blocks and margin per key head."""
    group = sizes.num_heads // sizes.num_kv_heads
    blocks = -(-len(k_NGD) // sizes.block_size)
    outputs, chosen, margins = [], [], []
    for g in range(sizes.num_kv_heads):
        q_g = q_HD[g * group : (g + 1) * group]
        taken, margin = choose_blocks(block_scores(q_g, k1_GnD[g], k2_GnD[g], t, blocks, sizes), t, sizes)
        tokens = [j for j in range(t + 1) if j // sizes.block_size in taken]
        outputs += [attend(q_D, k_NGD[tokens, g], v_NGD[tokens, g], sizes.scale) for q_D in q_g]
        chosen.append(taken)
        margins.append(margin)
    return np.array(outputs), chosen, margins


def dense_row(q_HD: Array, k_NGD: Array, v_NGD: Array, t: int, sizes: SparseSizes) -> Array:
    """Causal attention of the token at position t: output [H, D]."""
    group = sizes.num_heads // sizes.num_kv_heads
    seen_k, seen_v = k_NGD[: t + 1], v_NGD[: t + 1]
    return np.array(
        [attend(q_D, seen_k[:, h // group], seen_v[:, h // group], sizes.scale) for h, q_D in enumerate(q_HD)]
    )


def attend(q_D: Array, k_ND: Array, v_ND: Array, scale: float) -> Array:
    logits = scale * (k_ND @ q_D)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights @ v_ND / weights.sum())


def infllmv2_attention(
    qkvg: Tensor, rows: Sequence[int], context_length: int, sizes: SparseSizes
) -> tuple[list[SparseResult], Array, Array]:
    """The sparse mixer over one whole sequence.

    Args: `qkvg` [N, 2 (H + G) D] of all tokens so far; `rows` the positions wanted.
    Returns: one result per wanted position; k1 [G, n1, D] and k2 [G, n2, D].
    """
    heads, kv_heads, dim = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
    packed = as_float64(qkvg)
    q, k, v, gate = np.split(packed, np.cumsum([heads * dim, kv_heads * dim, kv_heads * dim]), axis=1)
    q_NHD = q.reshape(-1, heads, dim)
    k_NGD, v_NGD = (x.reshape(-1, kv_heads, dim) for x in (k, v))
    size, stride = sizes.kernel_size, sizes.kernel_stride
    k1 = np.stack([window_means(k_NGD[:, g], size, stride, qkvg.dtype) for g in range(kv_heads)])
    k2 = np.stack([window_means(k_NGD[:, g], 4 * size, 4 * stride, qkvg.dtype) for g in range(kv_heads)])
    results = []
    for t in rows:
        if context_length < sizes.dense_len:
            o = dense_row(q_NHD[t], k_NGD, v_NGD, t, sizes)
            results.append(SparseResult(y=o.reshape(-1) * sigmoid(gate[t]), blocks=(), margins=()))
        else:
            o, chosen, margins = sparse_row(q_NHD[t], k_NGD, v_NGD, k1, k2, t, sizes)
            y = o.reshape(-1) * sigmoid(gate[t])
            results.append(SparseResult(y=y, blocks=tuple(chosen), margins=tuple(margins)))
    return results, k1, k2


def rope_cos_sin(positions: Sequence[int], dim: int, theta: float = 1e4) -> tuple[Array, Array]:
    """Cosine and sine, each [N, D / 2], of the float32 product of float32 position and float32 inverse frequency."""
    inv_freq = np.array(
        [np.float32(1) / np.float32(math.pow(theta, i / dim)) for i in range(0, dim, 2)], dtype=np.float32
    )
    angles = np.array([[np.float32(p) * f for f in inv_freq] for p in positions], dtype=np.float32).astype(np.float64)
    return np.cos(angles), np.sin(angles)


def rotate(x_D: Array, cos: Array, sin: Array) -> Array:
    """Rotate-half RoPE of one head of one token."""
    half = len(x_D) // 2
    out = np.empty_like(x_D)
    for i in range(half):
        out[i] = x_D[i] * cos[i] - x_D[i + half] * sin[i]
        out[i + half] = x_D[i + half] * cos[i] + x_D[i] * sin[i]
    return out


def linear_recurrence(q_NHD: Array, k_NHD: Array, v_NHD: Array, state: Array, scale: float) -> tuple[Array, Array]:
    """`S = lambda S + k v^T`, `o = scale S^T q`, token by token: output [N, H, D] and the last state [H, D, D]."""
    heads = q_NHD.shape[1]
    state = state.copy()
    o = np.zeros_like(q_NHD)
    for t in range(len(q_NHD)):
        for h in range(heads):
            decay = math.exp(-(2.0 ** (-8.0 * (h + 1) / heads)))
            state[h] = decay * state[h] + np.outer(k_NHD[t, h], v_NHD[t, h])
            o[t, h] = scale * (q_NHD[t, h] @ state[h])
    return o, state


def lightning_attention(
    qkvz: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    positions: Sequence[int],
    state: Tensor,
    *,
    num_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
) -> tuple[Array, Array]:
    """The lightning mixer over consecutive tokens of one sequence.

    Args: `qkvz` [N, 4 H D]; `norms` the weights of the query, key and output norms; `state` [H, D, D].
    Returns: y [N, H D] before its rounding to the type of `qkvz`, and the state after the last token.
    """
    q_norm, k_norm, o_norm = (as_float64(w) for w in norms)
    q, k, v, z = (x.reshape(-1, num_heads, head_dim) for x in np.split(as_float64(qkvz), 4, axis=1))
    cos, sin = rope_cos_sin(positions, head_dim)
    for t in range(len(q)):
        for h in range(num_heads):
            q[t, h] = rotate(rms_norm(q[t, h], q_norm, eps), cos[t], sin[t])
            k[t, h] = rotate(rms_norm(k[t, h], k_norm, eps), cos[t], sin[t])
    o, last = linear_recurrence(rounded(q, qkvz.dtype), rounded(k, qkvz.dtype), v, as_float64(state), scale)
    gate = sigmoid(z.reshape(len(z), -1))
    y = np.array([rms_norm(row, o_norm, eps) for row in o.reshape(len(o), -1)]) * gate
    return y, last
