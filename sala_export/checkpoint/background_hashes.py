"""Hashes tensors in threads while the caller copies the same bytes and reads the next tensors."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .tensor_location import TensorLocation

_MOST_THREADS = 8
_MOST_BYTES = 512 << 20
"""Of the tensors that are read or wait: the largest tensor of the published model alone takes more."""


class BackgroundHashes:
    """Reads tensors of which threads then remember the hash. One thread at a time may call it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._bytes = 0

    def read(self, where: TensorLocation) -> NDArray[np.uint8]:
        """Read a tensor, whose bytes the caller leaves as they are.

        Raises: as `TensorLocation.raw`, also for a tensor that was read before this one.
        """
        while self._waiting and self._bytes + where.length > _MOST_BYTES:
            self._wait_for_one()
        block = where.read()
        self._waiting.append((where.length, self._pool.submit(where.remember, block)))
        self._bytes += where.length
        return block

    def wait(self) -> None:
        """Wait until all that was read is hashed. Raises: as `read`."""
        while self._waiting:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        length, future = self._waiting.popleft()
        self._bytes -= length
        future.result()
