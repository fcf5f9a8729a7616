"""Launches of InfLLMv2Attention run alone, where Triton interprets, on lists and states that a test makes up.

B batch, T tokens of the chunk, G key heads, D head dim, C capacity of the caches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .oracles import SparseSizes
from .sparse_calls import int32, windows
from .triton_interpreter import UNWRITTEN, call_interpreting, poisoned

TokenLists = Sequence[Sequence[Sequence[Sequence[int]]]]
"""Ascending chosen blocks by batch row, key head and token."""


@dataclass(frozen=True, kw_only=True)
class LaunchCase:
    """One call with all that its launches read: caches [B, G, C, D], and what earlier launches would have written."""

    sizes: SparseSizes
    past: Sequence[int]
    context: Sequence[int]
    qkvg: Tensor
    k: Tensor
    v: Tensor
    given: Mapping[str, Tensor]
    """Outputs and workspaces by name; the rest is poisoned."""
    sm: int


def after_each_launch(case: LaunchCase, kernels: Sequence[str]) -> list[dict[str, Tensor]]:
    """Outputs and workspaces after each of the named kernels, which run in this order on the same buffers."""
    return call_interpreting(_after_each_launch, case, tuple(kernels))


def _after_each_launch(case: LaunchCase, kernels: Sequence[str]) -> list[dict[str, Tensor]]:
    from sala_export.ops.common.triton_run import bind_kernels
    from sala_export.ops.infllmv2_attention.schema import CONTRACT
    from sala_export.ops.infllmv2_attention.triton_kernel import KERNELS

    sizes, capacity = case.sizes, case.k.shape[2]
    compressed = [
        case.k.new_empty(*case.k.shape[:2], windows(capacity, f * sizes.kernel_size, f * sizes.kernel_stride), 1)
        .expand(-1, -1, -1, sizes.head_dim)
        .contiguous()
        for f in (1, 4)
    ]
    inputs = [case.qkvg, int32(case.past), int32(case.context), case.k, case.v, *compressed]
    # Between processes torch shares the memory of tensors.
    given = {name: buffer.clone() for name, buffer in case.given.items()}
    call = bind_kernels(CONTRACT, KERNELS, inputs, asdict(sizes), allocate=poisoned, given=given, sm=case.sm)
    after = []
    for kernel in kernels:
        next(launch for launch in call.launches if launch.launch.name == kernel).run()
        after.append({name: buffer.clone() for name, buffer in call.buffers.items() if name in ("y", "log_sum")})
    return after


def lists_with_union(tokens: int, count: int, size: int, candidates: Sequence[int], seed: int) -> list[list[int]]:
    """A list of `count` candidates for each token, ascending, with `size` different blocks among them all.

    `size` is from `count` to `tokens * count`.
    """
    chance = random.Random(seed)
    blocks = chance.sample(list(candidates), size)
    lists = []
    for token in range(tokens):
        # New ones as long as there are any, then what other tokens have.
        start = min(token * count, size)
        fresh = blocks[start : start + count]
        others = [block for block in blocks if block not in fresh]
        lists.append(sorted(fresh + chance.sample(others, count - len(fresh))))
    chance.shuffle(lists)
    return lists


def list_workspaces(lists: TokenLists, sizes: SparseSizes, union_tokens: int) -> dict[str, Tensor]:
    """`chosen`, `union_blocks` and `union_size` as selection leaves them; what it does not write holds no block."""
    tokens, limit = len(lists[0][0]), max(sizes.topk - 1 - sizes.init_blocks, 1)
    heads = (len(lists), len(lists[0]))
    chosen = torch.full((*heads, tokens, limit), UNWRITTEN, dtype=torch.int32)
    union_blocks = torch.full((*heads, tokens, 64), UNWRITTEN, dtype=torch.int32)
    union_size = torch.full((*heads, tokens), UNWRITTEN, dtype=torch.int32)
    for b, row in enumerate(lists):
        for g, head in enumerate(row):
            for t, own in enumerate(head):
                chosen[b, g, t] = int32([*own, *[-1] * (limit - len(own))])
            for first in range(0, tokens, union_tokens):
                tile = head[first : first + union_tokens]
                union = [
                    block << union_tokens | sum((block in own) << j for j, own in enumerate(tile))
                    for block in sorted({block for own in tile for block in own})
                ]
                union_blocks[b, g].view(-1)[64 * first : 64 * first + len(union)] = int32(union)
                union_size[b, g, first] = len(union)
    return {"chosen": chosen, "union_blocks": union_blocks, "union_size": union_size}


def amid_nan(x: Tensor) -> Tensor:
    """A copy of `x` in a storage that holds NaN before and after it."""
    guard = 64 * 128
    storage = torch.full((x.numel() + 2 * guard,), math.nan, dtype=x.dtype)
    storage[guard:-guard] = x.flatten()
    return storage[guard:-guard].view(x.shape)


def attention(case: LaunchCase, b: int, g: int, t: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Output [R, D] of a token's heads over some rows of the cache in float64, not gated, and its log2-sum-exp [R]."""
    q, _ = heads_of(case, b, g, t)
    k, v = (cache[b, g, list(rows)].double() for cache in (case.k, case.v))
    logits = case.sizes.scale * q @ k.T
    return logits.softmax(-1) @ v, logits.logsumexp(-1) / math.log(2)


def heads_of(case: LaunchCase, b: int, g: int, t: int) -> tuple[Tensor, Tensor]:
    """Queries and gates [R, D] of a token and key head in float64."""
    sizes = case.sizes
    heads = case.qkvg[b, t].double().view(-1, sizes.head_dim)
    group = sizes.num_heads // sizes.num_kv_heads
    return heads[g * group : (g + 1) * group], heads[-sizes.num_heads :][g * group : (g + 1) * group]
