"""Allocates memory of a device by address, as the C++ session asks for it."""

from __future__ import annotations

import bisect
import mmap
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.python_engine import Address
from ..specs import format_bytes


class Allocation(Protocol):
    """An allocation whose bytes are zero at first and after `clear`."""

    tensor: Tensor
    """The bytes, uint8 [size]."""

    def clear(self) -> None: ...


class TorchMemory:
    """Memory of one device. Several threads may use it if each uses its own allocations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._allocations: dict[Address, Allocation] = {}
        self._addresses: list[Address] = []
        """Of `_allocations`, ascending."""

    def allocate(self, size: int) -> Address:
        """Allocate zeros and return their address. Raises: MemoryError."""
        # No address may be given twice, not even for nothing.
        allocation = _allocate(self._device, max(size, 1))
        address = allocation.tensor.data_ptr()
        self._allocations[address] = allocation
        bisect.insort(self._addresses, address)
        return address

    def release(self, address: Address) -> None:
        del self._allocations[address]
        self._addresses.remove(address)

    def clear(self, address: Address) -> None:
        self._allocations[address].clear()

    def read(self, host: NDArray[np.uint8], address: Address) -> None:
        torch.from_numpy(host).copy_(self.bytes_at(address, len(host)))

    def write(self, address: Address, host: NDArray[np.uint8]) -> None:
        self.bytes_at(address, len(host)).copy_(torch.from_numpy(host))

    def bytes_at(self, address: Address, size: int) -> Tensor:
        """View uint8 [size] from an address on, which lies within one allocation."""
        first = self._addresses[bisect.bisect_right(self._addresses, address) - 1]
        return self._allocations[first].tensor[address - first :][:size]


def _allocate(device: torch.device, size: int) -> Allocation:
    if device.type == "cpu":
        return _HostPages(size)
    try:
        return _DeviceBytes(torch.zeros(size, dtype=torch.uint8, device=device))
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the GPU has no room for {format_bytes(size)} more, {format_bytes(free_bytes(device))} are free: choose a "
            "smaller max_context or chunk_tokens, or end what else runs there"
        ) from error


class _DeviceBytes:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def clear(self) -> None:
        self.tensor.zero_()


class _HostPages:
    """Anonymous pages, as the runtime on the CPU has them: given by the system when first written."""

    def __init__(self, size: int) -> None:
        try:
            self._pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(
                f"no room for {format_bytes(size)} of host memory: choose a smaller max_context, or a machine with more"
            ) from error
        self.tensor = torch.frombuffer(self._pages, dtype=torch.uint8)

    def clear(self) -> None:
        self._pages.madvise(mmap.MADV_DONTNEED)


def new_bytes(device: torch.device, size: int) -> Tensor:
    """Allocate zeros, uint8 [size], which live as long as the tensor. Raises: MemoryError."""
    return _allocate(device, size).tensor if size else torch.empty(0, dtype=torch.uint8, device=device)


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take: free ones, and those that its allocator holds in reserve."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserve
