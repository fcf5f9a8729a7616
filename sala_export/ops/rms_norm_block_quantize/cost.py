"""What the RMSNormBlockQuantize kernel moves, and the least that any does: every byte once.

A row that is wider than the kernel's tile is read twice, the second time out of a cache.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.block_scales import quantized_bytes
from ..common.cost import KernelCost


def costs(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> tuple[KernelCost, ...]:
    """The launch of a call. Args: all attributes of the operator by name; `past_length` changes nothing."""
    return (_cost("rms_norm_block_quantize_kernel", attributes, batch * tokens, activation_bytes),)


def floor(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> KernelCost:
    """The least of any implementation: what the kernel moves."""
    return _cost("rms_norm_block_quantize", attributes, batch * tokens, activation_bytes)


def _cost(name: str, attributes: Mapping[str, int | float], rows: int, activation_bytes: int) -> KernelCost:
    columns = int(attributes["columns"])
    return KernelCost(
        kernel=name,
        bytes_read=(rows + 1) * columns * activation_bytes,
        bytes_written=rows * quantized_bytes(columns),
        operations=0,
    )
