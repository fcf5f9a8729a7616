"""The interface of an engine that you write in Python and run behind the C++ session.

It is the Python spelling of `sala::Engine` and `Execution` (runtime/include/sala/engine.h). The other side is
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
    """Runs steps on caches of B rows: on those of one session, or on those of B sequences that decode together."""

    def run(self, inputs: Mapping[str, NDArray[Any]], logits: NDArray[np.float32]) -> None:
        """Run one step, update the caches and write the logits of the tokens that `logit_rows` names.

        Where B > 1, T is 1 and all rows are wanted. Sequences have lengths of their own, and dense and sparse ones may
        be in one step.

        Args: `inputs` are the token inputs by name: `input_ids` int64 [B, T], `past_length` and `context_length` int32
            [B], `rope_cos_sin` fp32 [B, T, head_dim], and `logit_rows` int32 [R], where b * T + t is token t of
            sequence b. Write `logits`, fp32 [R, V]. All are views of memory that is valid during the call only.
        """


class PythonEngine(Protocol):
    """An engine. It is immutable, and its attributes are read once."""

    name: str
    precision: str
    """Precision as in bundle.json. States move between engines of the same precision."""
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_context: int
    """Largest number of tokens that a session can hold."""
    max_chunk_tokens: int
    max_batch: int
    """Most sequences of one decode step. With 1, caches have one row, and no batch is given."""
    default_chunk_tokens: int
    max_logit_rows: int
    """Most tokens of which one step gives logits."""

    device: int | None
    """Ordinal of the GPU whose memory the caches are in, as the CUDA driver counts. None for the host's memory."""

    def prepare(self, chunk_tokens: int) -> None:
        """Make room for steps of this many tokens, before a session is made.

        Raises: MemoryError, saying by how much, if they do not fit.
        """

    def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> PythonExecution:
        """Create an execution for a session, or for B sequences that decode together, one in each row of the caches.

        The caches keep these addresses and shapes for good. They are contiguous, and B is the first extent of all of
        their shapes. Several executions may be on one address, each with a B of its own. Only tokens that a step has
        written, or is about to write, may be touched: behind the others there is no memory.

        Raises: MemoryError if steps of B sequences do not fit.
        """
