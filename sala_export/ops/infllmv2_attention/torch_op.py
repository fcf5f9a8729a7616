"""The InfLLM-v2 operator in torch, in two forms with one computation.

* `infllmv2_attention_` updates the caches in place: what models run.
* `torch.ops.sala.infllmv2_attention` returns new caches, as the node of an ONNX graph does. A runtime binds past and
  present caches of that to one buffer and so gets the first form back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError
from ..common.torch_contract import bind_call
from .reference import infllmv2_attention as reference
from .schema import CONTRACT


def infllmv2_attention_(
    qkvg: Tensor,
    past_length: Tensor,
    context_length: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k1_cache: Tensor,
    k2_cache: Tensor,
    **attributes: Any,
) -> Tensor:
    """Contract of schema.py with the caches updated in place; returns `y`.

    Raises: ShapeError if a shape, type, attribute or length breaks the contract; the caches are then untouched.
    """
    tensors = (qkvg, past_length, context_length, k_cache, v_cache, k1_cache, k2_cache)
    names = bind_call(CONTRACT, tensors, attributes)
    ends = past_length + names["T"]
    if int(past_length.min()) < 0 or int(ends.max()) > names["C"]:
        raise ShapeError(
            f"{CONTRACT.onnx_type}: past_length {past_length.tolist()} plus {names['T']} tokens leaves the cache, "
            f"which holds {names['C']}: allocate larger caches or feed fewer tokens"
        )
    if bool((context_length < ends).any()):
        raise ShapeError(
            f"{CONTRACT.onnx_type}: context_length {context_length.tolist()} is less than past_length plus tokens, "
            f"{ends.tolist()}: it counts the whole context"
        )
    return reference(*tensors, **attributes)


@torch.library.custom_op("sala::infllmv2_attention", mutates_args=())
def infllmv2_attention(
    qkvg: Tensor,
    past_length: Tensor,
    context_length: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k1_cache: Tensor,
    k2_cache: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Functional form: returns `(y, k_cache_out, v_cache_out, k1_cache_out, k2_cache_out)`.

    Raises: ShapeError as `infllmv2_attention_`.
    """
    caches = (k_cache.clone(), v_cache.clone(), k1_cache.clone(), k2_cache.clone())
    y = infllmv2_attention_(
        qkvg,
        past_length,
        context_length,
        *caches,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=scale,
        kernel_size=kernel_size,
        kernel_stride=kernel_stride,
        block_size=block_size,
        topk=topk,
        window_size=window_size,
        init_blocks=init_blocks,
        dense_len=dense_len,
    )
    return (y, *caches)


@infllmv2_attention.register_fake
def _(
    qkvg: Tensor,
    past_length: Tensor,
    context_length: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k1_cache: Tensor,
    k2_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *attributes: int | float,
    **named: int | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, _ = qkvg.shape
    y = qkvg.new_empty(batch, tokens, num_heads * head_dim)
    k, v, k1, k2 = (torch.empty_like(cache) for cache in (k_cache, v_cache, k1_cache, k2_cache))
    return y, k, v, k1, k2
