"""Calls of both operators at published sizes, for the plugins on a GPU: one chunk, and single tokens one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sala_export.ops.infllmv2_attention import schema as infllmv2_attention
from sala_export.ops.lightning_attention import schema as lightning_attention

from .lightning_checks import random_inputs
from .oracles import SparseSizes
from .plugin_calls import PluginCall
from .sparse_calls import int32, projections, windows

Attributes = Mapping[str, int | float]


@dataclass(frozen=True, kw_only=True)
class GpuCase:
    """A plugin's call, and the inputs that change from one run to the next."""

    call: PluginCall
    steps: Sequence[Mapping[str, Tensor]]


def _with_head_dim(attributes: Attributes, head_dim: int) -> dict[str, int | float]:
    return {**attributes, "head_dim": head_dim, "scale": head_dim**-0.5}


def lightning_case(
    tokens: int,
    *,
    steps: int = 1,
    batch: int = 2,
    head_dim: int = 128,
    activation: str = "bfloat16",
    is_in_place: bool = True,
    attributes: Attributes = lightning_attention.PUBLISHED,
) -> GpuCase:
    """`steps` chunks of `tokens`, of up to two sequences, the first near position 70,000, after a long past."""
    attributes = _with_head_dim(attributes, head_dim)
    heads = int(attributes["num_heads"])
    qkvz, *norms, angles, state = random_inputs(steps * tokens, head_dim, batch=batch, heads=heads)
    dtype = getattr(torch, activation)
    chunks = [
        {"qkvz": rows.to(dtype), "rope_cos_sin": part}
        for rows, part in zip(qkvz.split(tokens, dim=1), angles.split(tokens, dim=1), strict=True)
    ]
    names = ("q_norm", "k_norm", "o_norm")
    constant = {name: norm.to(dtype) for name, norm in zip(names, norms, strict=True)}
    call = PluginCall(
        contract=lightning_attention.CONTRACT,
        attributes=attributes,
        dims={"B": len(qkvz), "T": tokens},
        activation=activation,
        is_in_place=is_in_place,
    )
    return GpuCase(call=call, steps=[{**chunks[0], **constant, "state": state}, *chunks[1:]])


def sparse_case(
    tokens: int,
    pasts: Sequence[tuple[int, ...]],
    *,
    head_dim: int = 128,
    activation: str = "bfloat16",
    is_in_place: bool = True,
    attributes: Attributes = infllmv2_attention.PUBLISHED,
) -> GpuCase:
    """One chunk of `tokens` for each of `pasts`, the tokens that each sequence has before it.

    The caches hold what the first chunk needs, and NaN beyond. A later chunk may go on after the one before it, or go
    back: what the caches hold beyond its tokens is then of the future, which it must not see.
    """
    attributes = _with_head_dim(attributes, head_dim)
    sizes = SparseSizes(**attributes)  # type: ignore[arg-type]
    dtype = getattr(torch, activation)
    capacity = max(past for row in pasts for past in row) + tokens + 7
    caches = _caches(sizes, pasts[0], capacity, dtype)
    steps = [
        {
            "qkvg": torch.stack([projections(tokens, sizes, 100 * number + b, dtype) for b in range(len(row))]),
            "past_length": int32(row),
            "context_length": int32([past + tokens for past in row]),
        }
        for number, row in enumerate(pasts)
    ]
    dims = {"C": capacity, "C1": caches["k1_cache"].shape[2], "C2": caches["k2_cache"].shape[2]}
    call = PluginCall(
        contract=infllmv2_attention.CONTRACT,
        attributes=attributes,
        dims={"B": len(pasts[0]), "T": tokens, **dims},
        activation=activation,
        is_in_place=is_in_place,
    )
    return GpuCase(call=call, steps=[{**steps[0], **caches}, *steps[1:]])


def lightning_prefill(**variant: Any) -> GpuCase:
    """Three segments of the kernels, the last one ragged; `variant` as `lightning_case` takes it."""
    return lightning_case(1030, batch=1, **variant)


def lightning_decode(**variant: Any) -> GpuCase:
    """Four tokens, one after the other."""
    return lightning_case(1, steps=4, **variant)


def sparse_prefill(**variant: Any) -> GpuCase:
    """Of the two sequences one chooses blocks, the other is dense; `variant` as `sparse_case` takes it."""
    return sparse_case(130, [(8100, 60)], **variant)


def sparse_decode(*, is_in_place: bool = True, **variant: Any) -> GpuCase:
    """The first sequence becomes sparse at context 8192, where windows of both sizes become complete, and goes back."""
    pasts = [(8190, 126), (8191, 127), (8192, 128), (8193, 129), (37, 5)]
    # Caches that are not updated must hold the past of every step from the start.
    order = pasts if is_in_place else [(8194, 130), *reversed(pasts)]
    return sparse_case(1, order, is_in_place=is_in_place, **variant)


def _caches(sizes: SparseSizes, past: Sequence[int], capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random keys and values with their compressed keys for past[b] tokens, NaN beyond."""
    groups, width = sizes.num_kv_heads, sizes.head_dim
    strides = {"k1_cache": sizes.kernel_stride, "k2_cache": 4 * sizes.kernel_stride}
    window_keys = {"k1_cache": sizes.kernel_size, "k2_cache": 4 * sizes.kernel_size}
    rows = {name: windows(capacity, window_keys[name], strides[name]) for name in strides}
    caches = {
        name: torch.full((len(past), groups, count, width), math.nan, dtype=dtype)
        for name, count in {"k_cache": capacity, "v_cache": capacity, **rows}.items()
    }
    for b, length in enumerate(past):
        keys, values = _keys_and_values(length, sizes, b, dtype)
        caches["k_cache"][b, :, :length], caches["v_cache"][b, :, :length] = keys, values
        for name, stride in strides.items():
            if length >= window_keys[name]:
                means = keys.float().unfold(1, window_keys[name], stride).mean(-1)
                caches[name][b, :, : means.shape[1]] = means.to(dtype)
    return caches


def _keys_and_values(tokens: int, sizes: SparseSizes, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[G, tokens, D] each; neighbouring keys share a direction (sparse_calls.projections)."""
    generator = torch.Generator().manual_seed(seed)
    shape = sizes.num_kv_heads, tokens, sizes.head_dim
    topics = torch.randn(sizes.num_kv_heads, -(-tokens // 24), sizes.head_dim, generator=generator)
    keys = torch.randn(shape, generator=generator) + 2 * topics.repeat_interleave(24, dim=1)[:, :tokens]
    return keys.to(dtype), torch.randn(shape, generator=generator).to(dtype)
