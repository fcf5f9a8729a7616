"""The interface of an engine that you write in Python and run behind the C++ session.

It is the Python spelling of `sala::Engine`, `Memory` and `Execution` (runtime/include/sala/engine.h). The other side is
runtime/bindings/python_engine.h. An exception ends the call of the session. A MemoryError becomes a RunError with it as
the cause. A step that fails poisons the session. Errors of `sala_export.errors` and KeyboardInterrupt come out as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..specs import TensorSpec

Address = int
"""Address of a byte in the engine's memory, on whatever device that is."""


class PythonExecution(Protocol):
    """Runs steps on the caches of one session."""

    def run(self, inputs: Mapping[str, NDArray[Any]], logits: NDArray[np.float32]) -> None:
        """Run one step, update the caches and write the last token's logits.

        Args: `inputs` are the token inputs by name (`input_ids` [1, T] and so on). Write `logits`, fp32 [1, V].
            All are views of memory that is valid during the call only.
        """


class PythonEngine(Protocol):
    """An engine. It is immutable apart from its memory, and its first seven attributes are read once."""

    name: str
    precision: str
    """Precision as in bundle.json. States move between engines of the same precision."""
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_context: int
    """Largest number of tokens that a session can hold."""
    max_chunk_tokens: int
    default_chunk_tokens: int

    def prepare(self, max_context: int, chunk_tokens: int) -> None:
        """Make room for the steps of a session of these sizes, before its caches are allocated.

        Raises: MemoryError, saying by how much, if steps and caches do not fit.
        """

    def allocate(self, size: int) -> Address:
        """Allocate `size` bytes of zeros. Raises: MemoryError."""

    def release(self, address: Address) -> None:
        """Free an allocation of `allocate`."""

    def clear(self, address: Address) -> None:
        """Set a whole allocation of `allocate` to zero."""

    def read(self, host: NDArray[np.uint8], address: Address) -> None:
        """Copy bytes to the host. `address` may lie within an allocation."""

    def write(self, address: Address, host: NDArray[np.uint8]) -> None:
        """Copy bytes from the host."""

    def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> PythonExecution:
        """Create an execution for a session. Its caches keep these addresses and shapes for good."""
