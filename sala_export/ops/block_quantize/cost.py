"""What the BlockQuantize kernel moves, and the least that any does: every byte once."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.block_scales import quantized_bytes
from ..common.cost import KernelCost


def costs(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> tuple[KernelCost, ...]:
    """The launch of a call. Args: all attributes of the operator by name; `past_length` changes nothing."""
    return (_cost("block_quantize_kernel", attributes, batch * tokens, activation_bytes),)


def floor(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> KernelCost:
    """The least of any implementation: what the kernel moves."""
    return _cost("block_quantize", attributes, batch * tokens, activation_bytes)


def _cost(name: str, attributes: Mapping[str, int | float], rows: int, activation_bytes: int) -> KernelCost:
    columns, gated = int(attributes["columns"]), int(attributes["gated"])
    return KernelCost(
        kernel=name,
        bytes_read=rows * columns * (1 + gated) * activation_bytes,
        bytes_written=rows * quantized_bytes(columns),
        operations=0,
    )
