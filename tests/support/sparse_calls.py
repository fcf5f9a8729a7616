"""Calls of InfLLMv2Attention for tests: inputs, poisoned caches, chunked runs and the blocks they took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sala_export.ops.infllmv2_attention import reference
from sala_export.ops.infllmv2_attention.torch_op import infllmv2_attention_

from .oracles import SparseSizes


@dataclass(kw_only=True)
class Cache:
    """The caches of a call, poisoned with NaN beyond their valid rows."""

    k: Tensor
    v: Tensor
    k1: Tensor
    k2: Tensor

    @classmethod
    def empty(
        cls,
        batch: int,
        capacity: int,
        sizes: SparseSizes,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Cache:
        def poisoned(rows: int) -> Tensor:
            shape = (batch, sizes.num_kv_heads, rows, sizes.head_dim)
            return torch.full(shape, math.nan, dtype=dtype, device=device)

        n1 = windows(capacity, sizes.kernel_size, sizes.kernel_stride)
        n2 = windows(capacity, 4 * sizes.kernel_size, 4 * sizes.kernel_stride)
        return cls(k=poisoned(capacity), v=poisoned(capacity), k1=poisoned(n1), k2=poisoned(n2))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k, self.v, self.k1, self.k2


def windows(tokens: int, size: int, stride: int) -> int:
    """Complete windows in a context of `tokens`."""
    return max(0, (tokens - size) // stride + 1)


def projections(tokens: int, sizes: SparseSizes, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random `qkvg` [tokens, 2 (H + G) D] whose block scores differ: neighbouring keys share a direction."""
    generator = torch.Generator().manual_seed(seed)
    width = 2 * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim
    x = torch.randn(tokens, width, generator=generator)
    q_width, kv_width = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    topics = torch.randn(-(-tokens // 24), kv_width, generator=generator).repeat_interleave(24, dim=0)
    x[:, q_width : q_width + kv_width] += 2 * topics[:tokens]
    return x.to(dtype)


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def feed(
    qkvg: Tensor, chunks: Sequence[int], sizes: SparseSizes, capacity: int, context_length: int | None = None
) -> tuple[Tensor, Cache]:
    """Run one sequence in chunks through the in-place form; `y` [N, H D] and the caches.

    `context_length` defaults to the length so far, as a runtime that does not know the whole prompt gives it.
    """
    cache = Cache.empty(1, capacity, sizes, qkvg.dtype, qkvg.device)
    outputs, past = [], 0
    for chunk in chunks:
        end = past + chunk
        context = int32([context_length or end])
        outputs.append(
            infllmv2_attention_(qkvg[None, past:end], int32([past]), context, *cache.tensors(), **asdict(sizes))[0]
        )
        past = end
    return torch.cat(outputs), cache


def blocks_of_op(qkvg: Tensor, cache: Cache, row: int, past: int, sizes: SparseSizes) -> list[list[tuple[int, ...]]]:
    """Blocks that batch entry `row` took for every token of its chunk `qkvg` [T, ...], per key head."""
    tokens = len(qkvg)
    group = sizes.num_heads // sizes.num_kv_heads
    q = qkvg[:, : sizes.num_heads * sizes.head_dim].reshape(tokens, sizes.num_kv_heads, group, sizes.head_dim)
    attributes = asdict(sizes)
    for unused in ("num_heads", "num_kv_heads", "head_dim", "dense_len"):
        del attributes[unused]
    taken = reference.select_blocks(
        q.permute(1, 2, 0, 3).float(), cache.k1[row], cache.k2[row], torch.arange(past, past + tokens), **attributes
    ).taken
    return [[tuple(head[t].nonzero().flatten().tolist()) for head in taken] for t in range(tokens)]
