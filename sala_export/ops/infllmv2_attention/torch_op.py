"""The InfLLM-v2 operator in torch, its call checked against the contract: what models run."""

from __future__ import annotations

from typing import Any

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
