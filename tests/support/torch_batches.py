"""Decode steps of several sequences on an engine of the torch runtime, beside the steps of each sequence alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sala_export.model.signature import (
    CONTEXT_LENGTH,
    INPUT_IDS,
    LOGIT_ROWS,
    PAST_LENGTH,
    ROPE_COS_SIN,
    cache_sizes,
    signature,
)
from sala_export.specs import Precision
from sala_export.torch_runtime.engine import TorchEngine, TorchExecution

from .torch_sessions import POISON, torch_model

CAPACITY = 64
"""Tokens of the caches, unless a test says otherwise."""
UNUSED_ROWS = 1
"""Rows of a batch's caches behind those of its sequences."""

Caches = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one way of running the steps left behind: logits of every step, and the caches of a sequence after them."""

    logits: list[Tensor]
    """By step, fp32 [V]."""
    caches: Caches
    """By name, without a batch dimension. What nobody wrote is NaN."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    batch: list[Outcome]
    alone: list[Outcome]
    unused: Caches
    """Rows of the batch's caches behind those of its sequences."""
    replays: dict[int, int]
    """Steps that a graph ran, by how many sequences took part."""


def new_caches(engine: TorchEngine, batch: int, capacity: int) -> Caches:
    """Caches of sequences without a token: states are zero, all else NaN."""
    config = engine.packed.config
    sizes = cache_sizes(config, capacity, batch)
    caches = {}
    for entry in signature(config, engine.packed.precision.dtype).caches:
        content = 0.0 if entry.role == "state" else float("nan")
        dtype = getattr(torch, entry.past.dtype)
        caches[entry.past.name] = torch.full(entry.past.bound(sizes), content, dtype=dtype, device=engine.packed.device)
    return caches


def execution_on(engine: TorchEngine, caches: Mapping[str, Tensor], rows: int) -> TorchExecution:
    """An execution on the first `rows` rows of caches, which must outlive it."""
    return engine.create_execution({name: (x.data_ptr(), (rows, *x.shape[1:])) for name, x in caches.items()})


def run_step(
    engine: TorchEngine,
    execution: TorchExecution,
    ids: Sequence[Sequence[int]],
    past: Sequence[int],
    wanted: Sequence[int] | None = None,
) -> Tensor:
    """Logits [R, V] of `wanted` rows in a step of ids [B, T] after so many tokens [B]; by default of the last ones.

    The last token of each sequence is the last of its context. What the step may scribble on is poisoned before.
    """
    rows, tokens = np.array(ids, np.int64), len(ids[0])
    logit_rows = np.array(range(tokens - 1, rows.size, tokens) if wanted is None else wanted, np.int32)
    _, arena = engine.decode_memory(len(ids))
    with torch.inference_mode():
        for each in (arena, engine.arena(engine.decode_layout)):
            each.device.fill_(POISON)
    lengths = torch.tensor(past, dtype=torch.int32)
    inputs = {
        INPUT_IDS: rows,
        PAST_LENGTH: lengths.numpy(),
        CONTEXT_LENGTH: (lengths + tokens).numpy(),
        ROPE_COS_SIN: engine.packed.model.rope(lengths, tokens).numpy(),
        LOGIT_ROWS: logit_rows,
    }
    logits: NDArray[np.float32] = np.full((logit_rows.size, engine.packed.config.vocab_size), np.nan, np.float32)
    execution.run(inputs, logits)
    return torch.from_numpy(logits)


def prefilled(engine: TorchEngine, ids: Sequence[int], capacity: int) -> Caches:
    """Caches of one sequence after a step of these tokens, or of none."""
    caches = new_caches(engine, 1, capacity)
    if ids:
        run_step(engine, execution_on(engine, caches, 1), [ids], [0])
    return caches


def outcomes_of(
    engine: TorchEngine, lengths: Sequence[int], sizes: Sequence[int], capacity: int = CAPACITY
) -> Outcomes:
    """Run decode steps of sequences that have these lengths, together and each alone.

    Args: `sizes`: of each step, how many of the sequences take part: the first ones. Steps of one size share an
        execution.
    """
    random = np.random.default_rng(len(lengths))
    vocabulary = engine.packed.config.vocab_size
    single = [prefilled(engine, random.integers(0, vocabulary, n).tolist(), capacity) for n in lengths]
    steps: list[list[int]] = [random.integers(0, vocabulary, size).tolist() for size in sizes]
    batch = new_caches(engine, len(lengths) + UNUSED_ROWS, capacity)
    for name, tensor in batch.items():
        tensor.fill_(float("nan"))
        for row, caches in enumerate(single):
            tensor[row] = caches[name][0]
    together = {size: execution_on(engine, batch, size) for size in dict.fromkeys(sizes)}
    past = list(lengths)
    logits: list[list[Tensor]] = [[] for _ in lengths]
    for ids in steps:
        found = run_step(engine, together[len(ids)], [[token] for token in ids], past[: len(ids)])
        for row, values in enumerate(found):
            logits[row].append(values)
            past[row] += 1
    return Outcomes(
        batch=[Outcome(logits=values, caches=_row(batch, row)) for row, values in enumerate(logits)],
        alone=[
            _continued(engine, caches, length, [ids[row] for ids in steps if row < len(ids)])
            for row, (caches, length) in enumerate(zip(single, lengths, strict=True))
        ],
        unused={name: x[len(lengths) :].cpu() for name, x in batch.items()},
        replays={size: execution.replays for size, execution in together.items()},
    )


def _continued(engine: TorchEngine, caches: Caches, length: int, ids: Sequence[int]) -> Outcome:
    """Decode these tokens alone, on caches of one row."""
    execution = execution_on(engine, caches, 1)
    logits = [run_step(engine, execution, [[token]], [length + step])[0] for step, token in enumerate(ids)]
    return Outcome(logits=logits, caches=_row(caches, 0))


def _row(caches: Caches, row: int) -> Caches:
    return {name: x[row].cpu() for name, x in caches.items()}


def small_outcomes(
    checkpoint: Path,
    lengths: Sequence[int],
    sizes: Sequence[int],
    *,
    kernels: bool,
    precision: Precision = Precision.FP32,
) -> Outcomes:
    """`outcomes_of` a model on the CPU; kernels need Triton's interpreter."""
    return outcomes_of(torch_model(checkpoint, kernels=kernels, precision=precision).engine, lengths, sizes)


def require_alike(found: Outcomes, close: Callable[[Tensor, Tensor], None]) -> None:
    """Every row of a batch is as its sequence alone, by `close(actual, expected)`, and no other row was written."""
    for ours, theirs in zip(found.batch, found.alone, strict=True):
        for actual, expected in zip(ours.logits, theirs.logits, strict=True):
            close(actual, expected)
        for actual, expected in _written(ours.caches, theirs.caches):
            close(actual, expected)
    assert all(bool(x.isnan().all()) for x in found.unused.values())


def _written(actual: Caches, expected: Caches) -> Iterator[tuple[Tensor, Tensor]]:
    """What was written of each cache; it has to be the same elements in both."""
    for name, theirs in expected.items():
        is_written = ~theirs.isnan()
        assert torch.equal(~actual[name].isnan(), is_written), f"{name}: other tokens were written"
        yield actual[name][is_written], theirs[is_written]
