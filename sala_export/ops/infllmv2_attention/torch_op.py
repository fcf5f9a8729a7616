"""The InfLLM-v2 operator in torch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import ShapeError
from ..common.torch_contract import TorchOperator
from . import reference
from .schema import CONTRACT


def _check_lengths(
    names: Mapping[str, int], qkvg: Tensor, past_length: Tensor, context_length: Tensor, *caches: Tensor
) -> None:
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


infllmv2_attention_ = TorchOperator(
    contract=CONTRACT, reference=reference.infllmv2_attention, check_values=_check_lengths
)
"""Updates the caches in place and returns `y`."""
