"""The engine behind the C++ session: one model on one device, and an execution for every session."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint.config import Mixer
from ..model.layers import Cache
from ..model.signature import INPUT_IDS, LOGIT_ROWS, MAX_LOGIT_ROWS, signature
from ..runtime.python_engine import Address
from ..specs import TensorSpec, format_bytes
from .device_memory import bytes_at, free_bytes, new_bytes, ordinal_of
from .layout import Arena, Layout, cache_bytes, step_layout
from .operators import Operators
from .step import LayerProducts, Step
from .weights import PackedModel

MAX_CHUNK_TOKENS = 65536
MAX_BATCH = 64
"""Most sequences of a decode step."""
MAX_CONTEXT = 2**31 - 1 - MAX_CHUNK_TOKENS
"""Largest context. Positions are int32, and a step may end at the last one."""
CHUNK_CONTEXT, TOKEN_CONTEXT = 1 << 21, 1 << 17
"""Tokens of a context that the scratch of a chunk, or of one token, serves at least. So one arena serves all sessions
of no more."""
LIBRARY_BYTES = 128 << 20
"""Bytes left free on a GPU for workspaces of cuBLAS (two streams, at most 32 MiB each) and compiled kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionMemory:
    """Bytes on the device while one session runs, when its context is full."""

    weights_bytes: int
    cache_bytes: int
    step_bytes: int
    """Bytes of the arena of a chunk, which sessions of one model share."""
    decode_bytes: int
    """Bytes of the arena of one token of one session, which a CUDA graph keeps."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.step_bytes + self.decode_bytes


class TorchEngine:
    """An engine in PyTorch, as `runtime.python_engine.PythonEngine` describes it.

    Sessions take turns. A step has the arenas, and on a GPU the current stream of its thread, for itself.
    """

    name = "torch"
    max_context = MAX_CONTEXT
    max_chunk_tokens = MAX_CHUNK_TOKENS
    max_batch = MAX_BATCH
    max_logit_rows = MAX_LOGIT_ROWS

    def __init__(
        self, packed: PackedModel, operators: Operators, *, weights_bytes: int, default_chunk_tokens: int
    ) -> None:
        self.packed = packed
        self.operators = operators
        self.precision = str(packed.precision)
        step = signature(packed.config, packed.precision.dtype)
        self.inputs: Sequence[TensorSpec] = step.inputs
        self.outputs: Sequence[TensorSpec] = step.outputs
        self.default_chunk_tokens = default_chunk_tokens
        self.products = [LayerProducts.of(packed, layer) for layer in range(packed.config.num_hidden_layers)]
        self.lock = threading.RLock()
        self._weights_bytes = weights_bytes
        self._decode_memory: dict[tuple[int, int], tuple[Layout, Arena]] = {}
        self.decode_layout, self.decode_arena = self.decode_memory(1)
        self._arena = self._new_arena(None)
        self._executions: weakref.WeakSet[TorchExecution] = weakref.WeakSet()

    @property
    def device(self) -> int | None:
        """Ordinal of the GPU whose memory the caches are in. None for the host."""
        return ordinal_of(self.packed.device)

    def layout(self, tokens: int, batch: int = 1, capacity: int = 0, rows: int | None = None) -> Layout:
        """Layout of a step of this many tokens of each of `batch` sequences, whose caches hold up to `capacity`.

        It gives the logits of `rows` tokens, by default of the most that such a step can be asked for.
        """
        config, precision = self.packed.config, self.packed.precision
        served = _served(capacity, CHUNK_CONTEXT if tokens > 1 else TOKEN_CONTEXT)
        rows = rows or min(batch * tokens, MAX_LOGIT_ROWS)
        workspaces = self.operators.workspaces
        return step_layout(config, precision, tokens, workspaces, served, batch=batch, rows=rows)

    def memory(self, max_context: int, chunk_tokens: int) -> SessionMemory:
        """Account for the memory of a session of these sizes, the weights included."""
        return SessionMemory(
            weights_bytes=self._weights_bytes,
            cache_bytes=cache_bytes(self.packed.config, self.packed.precision, max_context),
            step_bytes=self.layout(chunk_tokens, capacity=max_context).total_bytes,
            decode_bytes=self.layout(1, capacity=max_context).total_bytes,
        )

    def prepare(self, chunk_tokens: int) -> None:
        """Allocate an arena for chunks of this size. Raises: MemoryError if it does not fit a GPU."""
        with self.lock:
            layout = self.layout(chunk_tokens)
            if self.device is not None:
                # What torch keeps in reserve, no cache could get.
                torch.cuda.empty_cache()
                self._require_room(layout, chunk_tokens)
            self.arena(layout)

    def decode_memory(self, batch: int, capacity: int = 0) -> tuple[Layout, Arena]:
        """Return layout and arena of steps of one token of each of `batch` sequences, whose caches hold `capacity`.

        The arena is made at the first call for a batch and such a capacity, and then kept: CUDA graphs hold its
        addresses.
        Raises: MemoryError if there is no room for it.
        """
        key = batch, _served(capacity, TOKEN_CONTEXT)
        if key not in self._decode_memory:
            # Between steps: one of them may be captured, and no one else makes this arena.
            with self.lock:
                if key not in self._decode_memory:
                    layout = self.layout(1, batch, capacity)
                    self._decode_memory[key] = layout, self._new_arena(layout)
        return self._decode_memory[key]

    def arena(self, layout: Layout) -> Arena:
        """Return an arena of chunks that is large enough for `layout`. It is a new one if it had to grow."""
        if not self._arena.holds(layout):
            # The old one goes first: both together may not fit.
            self._arena = self._new_arena(None)
            for execution in self._executions:
                execution.forget_chunks()
            self._arena = self._new_arena(layout)
        return self._arena

    def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> TorchExecution:
        """Create an execution on caches of these addresses and shapes: of a session, or of B sequences that decode.

        See `runtime.python_engine.PythonEngine.create_execution`.
        Raises: MemoryError if there is no room for the arena of a batch that is new.
        """
        config = self.packed.config
        layers: list[list[Tensor]] = [[] for _ in config.mixer_types]
        for entry in signature(config, self.packed.precision.dtype).caches:
            address, shape = caches[entry.past.name]
            dtype: torch.dtype = getattr(torch, entry.past.dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            layers[entry.layer].append(bytes_at(address, size, self.packed.device).view(dtype).view(*shape))
        execution = TorchExecution(self, [tuple(cache) for cache in layers])
        self._executions.add(execution)
        return execution

    def _new_arena(self, layout: Layout | None) -> Arena:
        """For steps up to a layout, or for none."""
        host_bytes = layout.input_bytes if layout else 0
        return Arena(
            device=new_bytes(self.packed.device, layout.total_bytes if layout else 0),
            host=torch.empty(host_bytes, dtype=torch.uint8, pin_memory=self.device is not None),
        )

    def _require_room(self, layout: Layout, chunk_tokens: int) -> None:
        # An arena that is there already counts as free: it is kept, or goes before a larger one comes.
        free = free_bytes(self.packed.device) + len(self._arena.device) - LIBRARY_BYTES
        needed = layout.total_bytes
        if needed > free:
            chunks = (size for shift in range(16, -1, -1) if (size := 1 << shift) < chunk_tokens)
            fitting = next((size for size in chunks if self.layout(size).total_bytes <= free), None)
            advice = f"chunk_tokens {fitting} would fit" if fitting else "end what else runs there"
            raise MemoryError(
                f"steps of chunk_tokens {chunk_tokens} need {format_bytes(needed)} on the "
                f"{torch.cuda.get_device_name(self.packed.device)}, {format_bytes(needed - free)} more than is free: "
                f"{advice}"
            )


class TorchExecution:
    """Steps on the caches of one session, or decode steps on those of several sequences, one in each row.

    On a GPU the second and later decode steps replay a CUDA graph.
    """

    def __init__(self, engine: TorchEngine, caches: Sequence[Cache]) -> None:
        self._engine = engine
        self._caches = caches
        mixers = engine.packed.config.mixer_types
        # Keys are [B, G, C, D]; a Lightning state has one size.
        capacities = (cache[0].shape[2] for mixer, cache in zip(mixers, caches, strict=True) if mixer is Mixer.SPARSE)
        self._capacity = max(capacities, default=0)
        self._decode = self._step(*engine.decode_memory(len(caches[0][0]), self._capacity))
        self._prefill: Step | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.replays = 0
        """Steps that the graph ran."""

    @property
    def decode_step(self) -> Step:
        """The step of one token of each sequence, which serves every position."""
        return self._decode

    def forget_chunks(self) -> None:
        """Release the arena of chunks, which is about to be replaced."""
        self._prefill = None

    def run(self, inputs: Mapping[str, NDArray[Any]], logits: NDArray[np.float32]) -> None:
        """Run one step. See `runtime.python_engine.PythonExecution.run`."""
        engine = self._engine
        with engine.lock, torch.inference_mode(), _device(engine.packed.device), _sums_in_fp32():
            try:
                step = self._step_of(inputs[INPUT_IDS].shape[1], len(inputs[LOGIT_ROWS]))
                step.bring(inputs)
                self._run(step)
                # Waits for the device.
                torch.from_numpy(logits).copy_(step.logits)
            except torch.OutOfMemoryError as error:
                raise MemoryError(
                    f"the GPU has no room left for a step ({error}): choose smaller chunk_tokens, or end "
                    "what else runs there"
                ) from error

    def _run(self, step: Step) -> None:
        if step is not self._decode or self._engine.device is None:
            step.run()
        elif self._graph is not None:
            self._graph.replay()
            self.replays += 1
        else:
            # The first step compiles kernels and sets up cuBLAS, which a capture must not.
            step.run()
            self._graph = _captured(step)

    def _step_of(self, tokens: int, rows: int) -> Step:
        """The step of so many tokens that gives the logits of so many rows. That of the last chunk is kept."""
        if tokens == 1:
            return self._decode
        engine = self._engine
        if self._prefill is None or (self._prefill.tokens, len(self._prefill.logits)) != (tokens, rows):
            layout = engine.layout(tokens, capacity=self._capacity, rows=rows)
            self._prefill = self._step(layout, engine.arena(layout))
        return self._prefill

    def _step(self, layout: Layout, arena: Arena) -> Step:
        engine = self._engine
        return Step(engine.packed, engine.products, engine.operators, layout, arena, self._caches)


def _served(capacity: int, least: int) -> int:
    """The capacity that steps on caches of this one are laid out for, a power of two: few arenas serve all."""
    return max(least, 1 << max(capacity - 1, 0).bit_length())


def _captured(step: Step) -> torch.cuda.CUDAGraph:
    """A graph of the step; nothing runs."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on with what a capture forbids, loading kernels for example.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step.run()
    return graph


@contextmanager
def _device(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def _sums_in_fp32() -> Iterator[None]:
    """Matrix products of 16 bits add up in fp32, parts of split sums too; the setting is the process's, so it is put
    back."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = before
