"""Tensors in memory of a device: new ones, and views of what the C++ session allocated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..runtime.python_engine import Address
from ..specs import format_bytes


def ordinal_of(device: torch.device) -> int | None:
    """Ordinal of a GPU. None for the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def bytes_at(address: Address, size: int, device: torch.device) -> Tensor:
    """View uint8 [size] of memory that someone else owns."""
    from ..runtime import _native

    return from_dlpack(_native.device_bytes(address, size, ordinal_of(device)))


def new_bytes(device: torch.device, size: int) -> Tensor:
    """Allocate zeros, uint8 [size], which live as long as the tensor. Raises: MemoryError."""
    try:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the GPU has no room for {format_bytes(size)} more, {format_bytes(free_bytes(device))} are free: choose "
            "smaller chunk_tokens, or end what else runs there"
        ) from error


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take: free ones, and those that its allocator holds in reserve."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserve
