"""Measures time to the first token, decode rate and peak memory of one model on one runtime."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.config import SalaConfig
from ..errors import RequestError, RunError, SalaError, SessionError
from ..loading import require_host_room
from ..machine import GpuMemory, peak_host_bytes
from ..runtime.model import Model
from ..runtime.session import Session
from ..specs import format_tokens

StatusCallback = Callable[[str], None]
"""Called with one line before every run."""

GPU_CONTEXTS = (64 << 10, 128 << 10)
CPU_CONTEXTS = (1 << 10, 2 << 10)
"""A CPU takes minutes for these where a GPU takes seconds for its own."""

_PREFILL_GROWTH = 1.15
"""The time of a prefill is taken to grow with this power of the context. Selection grows faster than per token."""
_WARM_UP_CHUNKS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkRequest:
    """The request for a measurement. Raises: RequestError for counts below one."""

    contexts: tuple[int, ...] | None
    """Lengths of the prompts in tokens. They run in ascending order, so a peak of memory belongs to the latest. None
    takes `GPU_CONTEXTS` or `CPU_CONTEXTS`, whichever the model runs on."""
    new_tokens: int
    repeats: int = 3
    chunk_tokens: int | None = None
    """Tokens per prefill step. None lets the engine choose."""
    seed: int = 0
    """Random seed of the prompts. Apart from the blocks selected, time depends only on their length."""

    def __post_init__(self) -> None:
        if self.contexts is not None and (not self.contexts or min(self.contexts) < 1):
            raise RequestError("--context: give at least one length of at least one token")
        for name in ("new_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise RequestError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1")
        if self.contexts is not None:
            object.__setattr__(self, "contexts", tuple(sorted(set(self.contexts))))

    def contexts_on(self, model: Model) -> tuple[int, ...]:
        """Lengths of the prompts for a model that is loaded."""
        return self.contexts or (GPU_CONTEXTS if model.on_gpu else CPU_CONTEXTS)


@dataclass(frozen=True, slots=True)
class Runs:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest minus smallest, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Measurement of one length of prompt, at batch 1."""

    context: int
    first_token: Runs
    """Time from the call with the whole prompt to the first token of the answer."""
    token: Runs | None
    """Time of every further token, mean of a run. None if only one token was asked for."""
    device_bytes: int | None
    """Bytes taken on the GPU, as its driver reports. None on the CPU."""
    predicted_device_bytes: int | None
    """The runtime's own account before the session, without the CUDA context. None if it has none."""
    host_bytes: int
    """Peak resident memory of this process so far, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """Makes a run go on without the contexts that it cannot measure."""

    left_out: Callable[[int, str], None]
    """Called with each such context and the reason, in one line."""
    deadline: float = math.inf
    """Deadline on the clock `time.monotonic`. No context begins that would not end before it."""


def measure(
    model: Model,
    config: SalaConfig,
    request: BenchmarkRequest,
    memory: GpuMemory,
    progress: StatusCallback,
    tolerance: Tolerance | None = None,
) -> Iterator[Measurement]:
    """Measure every context, after checking that all of them fit. With a `tolerance`, measure those that can be.

    Args: `config` is the model's. `memory` was made before the model was loaded.
    Raises: without a `tolerance`, RequestError for a context that does not fit, RunError if a step fails.
    """
    if tolerance is not None:
        yield from _measure_what_fits(model, config, request, memory, progress, tolerance)
        return
    require_room(model, config, request)
    for context in request.contexts_on(model):
        yield _measure_context(model, context, request, memory, progress)


def _measure_what_fits(
    model: Model,
    config: SalaConfig,
    request: BenchmarkRequest,
    memory: GpuMemory,
    progress: StatusCallback,
    tolerance: Tolerance,
) -> Iterator[Measurement]:
    last: Measurement | None = None
    for context in request.contexts_on(model):
        try:
            if last is not None:
                expected = expected_seconds(last, context, request, request.chunk_tokens or model.default_chunk_tokens)
                _require_time(expected, tolerance.deadline)
            require_host_room(model, config, "--context", context, new_tokens=request.new_tokens)
            last = _measure_context(model, context, request, memory, progress)
        except SalaError as error:
            tolerance.left_out(context, str(error))
            continue
        yield last


def expected_seconds(last: Measurement, context: int, request: BenchmarkRequest, chunk_tokens: int) -> float:
    """Predict the seconds of all runs of a context, from those of a shorter one.

    A decode step reads all weights and few keys, so its time is taken to stay the same.
    """
    runs = request.repeats + min(1.0, _WARM_UP_CHUNKS * chunk_tokens / context)
    prefill = last.first_token.median * math.pow(context / last.context, _PREFILL_GROWTH)
    token = last.token.median if last.token else 0.0
    return runs * prefill + request.repeats * (request.new_tokens - 1) * token


def _require_time(expected_seconds: float, deadline: float) -> None:
    left = deadline - time.monotonic()
    if expected_seconds > left:
        raise RequestError(
            f"would take about {expected_seconds:.0f} s, and {max(0.0, left):.0f} s of the time are left"
        )


def require_room(model: Model, config: SalaConfig, request: BenchmarkRequest) -> None:
    """Refuse the largest context if it does not fit, before minutes are spent on the others.

    Raises: RequestError with what it needs and what is available.
    """
    largest = request.contexts_on(model)[-1]
    require_host_room(model, config, "--context", largest, new_tokens=request.new_tokens)
    try:
        tokens = largest + request.new_tokens
        model.session(max_context=tokens, chunk_tokens=request.chunk_tokens).require_room(tokens)
    except (RunError, SessionError) as error:
        given = f"--context {format_tokens(largest)} with --new-tokens {request.new_tokens}"
        raise RequestError(f"{given}: {error}") from error


def _measure_context(
    model: Model, context: int, request: BenchmarkRequest, memory: GpuMemory, progress: StatusCallback
) -> Measurement:
    session = model.session(max_context=context + request.new_tokens, chunk_tokens=request.chunk_tokens)
    prompt = np.random.default_rng(request.seed).integers(0, model.vocab_size, context, dtype=np.int32)
    progress(f"{format_tokens(context)}: warming up")
    seconds = request.repeats * _seconds_of_a_run(session, _warm_up(session, prompt), context, request.new_tokens)
    runs = "1 run" if request.repeats == 1 else f"{request.repeats} runs"
    progress(f"{format_tokens(context)}: {runs} will take about {format_seconds(seconds)}")
    first, others = [], []
    for index in range(request.repeats):
        progress(f"{format_tokens(context)}: run {index + 1} of {request.repeats}")
        session.reset()
        seconds, each = _run(session, prompt, request.new_tokens)
        first.append(seconds)
        others.append(each)
    return Measurement(
        context=context,
        first_token=Runs(tuple(first)),
        token=Runs(tuple(others)) if request.new_tokens > 1 else None,
        device_bytes=memory.taken_bytes() if model.on_gpu else None,
        predicted_device_bytes=model.predicted_device_bytes(session.max_context, session.chunk_tokens),
        host_bytes=peak_host_bytes(),
    )


@dataclass(frozen=True, slots=True)
class _WarmUp:
    """Times of steps that were the first of their shapes."""

    chunk_seconds: float
    """Of one chunk, or of the whole prompt if it is no longer."""
    token_seconds: float
    """Of a decode step. 0 if the context has no room for one."""


def _warm_up(session: Session, prompt: NDArray[np.int32]) -> _WarmUp:
    """Run each shape of step: a whole chunk, what is left for the last, three single tokens.

    Kernels are compiled then, and a decode step is captured.
    """
    chunk = session.chunk_tokens
    prefill_tokens = min(len(prompt), chunk + len(prompt) % chunk)
    start = time.perf_counter()
    session.prefill(prompt[:prefill_tokens], context_length=len(prompt))
    chunk_seconds = (time.perf_counter() - start) * min(chunk, prefill_tokens) / prefill_tokens
    token_seconds = 0.0
    for token in prompt[: min(3, session.max_context - session.position)]:
        start = time.perf_counter()
        session.prefill([int(token)], context_length=session.max_context)
        token_seconds = time.perf_counter() - start
    return _WarmUp(chunk_seconds, token_seconds)


def _seconds_of_a_run(session: Session, warm_up: _WarmUp, context: int, new_tokens: int) -> float:
    """Predict the seconds of a prefill of `context` tokens and of the tokens generated behind it."""
    chunks = max(1.0, context / session.chunk_tokens)
    return warm_up.chunk_seconds * math.pow(chunks, _PREFILL_GROWTH) + (new_tokens - 1) * warm_up.token_seconds


def format_seconds(seconds: float) -> str:
    """A time as people say it, `40 s`, `3 min` or `2.5 h`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _run(session: Session, prompt: NDArray[np.int32], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and of each further one."""
    start = time.perf_counter()
    session.prefill(prompt)
    tokens = session.generate_tokens(max_new_tokens=new_tokens, stop_tokens=[])
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return first - start, (time.perf_counter() - first) / max(1, new_tokens - 1)
