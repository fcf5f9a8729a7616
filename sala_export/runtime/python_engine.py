"""What an engine written in Python gives the C++ session (runtime/bindings/python_engine.h).

It is the Python spelling of `sala::Engine`, `Memory` and `Execution` (runtime/include/sala/engine.h). Exceptions end a
session's call: MemoryError as a RunError with it as the cause, a step that fails poisons the session, errors of
`sala_export.errors` and KeyboardInterrupt come out as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..specs import TensorSpec

Address = int
"""Of a byte in the engine's memory, on whatever device that is."""


class PythonExecution(Protocol):
    """Runs steps on the caches of one session."""

    def run(self, inputs: Mapping[str, NDArray[Any]], logits: NDArray[np.float32]) -> None:
        """Run one step, update the caches and write the last token's logits.

        Args: `inputs`, the token inputs by name (`input_ids` [1, T] and so on); `logits` fp32 [1, V], to be written.
            All are views of memory that is valid during the call.
        """


class PythonEngine(Protocol):
    """Immutable but for its memory; the first seven are read once."""

    name: str
    precision: str
    """As in bundle.json; states pass between engines of one precision."""
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_context: int
    """Tokens that a session can hold at most."""
    max_chunk_tokens: int
    default_chunk_tokens: int

    def prepare(self, max_context: int, chunk_tokens: int) -> None:
        """Make room for the steps of a session of these sizes, before its caches are allocated.

        Raises: MemoryError, saying by how much, if steps and caches do not fit.
        """

    def allocate(self, size: int) -> Address:
        """Zeros, `size` bytes. Raises: MemoryError."""

    def release(self, address: Address) -> None:
        """Take back what `allocate` gave."""

    def clear(self, address: Address) -> None:
        """Set to zero the whole of what `allocate` gave."""

    def read(self, host: NDArray[np.uint8], address: Address) -> None:
        """Copy bytes to the host; `address` may lie within an allocation."""

    def write(self, address: Address, host: NDArray[np.uint8]) -> None:
        """Copy bytes from the host."""

    def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> PythonExecution:
        """For a session whose caches, by the names of `inputs`, have these addresses and shapes for good."""
