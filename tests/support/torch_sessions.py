"""Sessions of the torch runtime by the operators that compute them: the reference, or this project's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sala_export.model_source import ModelSource
from sala_export.runtime.session import Session
from sala_export.specs import Precision
from sala_export.torch_runtime.engine import TorchExecution
from sala_export.torch_runtime.load import TorchModel, assemble
from sala_export.torch_runtime.operators import ReferenceOperators

SPARSE = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 8,
    "topk": 3,
    "window_size": 8,
    "init_blocks": 1,
    "dense_len": 32,
}
"""A row takes four blocks, of which it chooses one: from 40 tokens on there are several to choose from."""
POISON = 0xFF
"""Of every byte: NaN in each floating type, -1 in int32."""


def torch_model(
    checkpoint: Path, *, kernels: bool, precision: Precision = Precision.FP32, device: str = "cpu"
) -> TorchModel:
    """A model with the operators named; on the CPU kernels need Triton's interpreter."""
    source = ModelSource.open(checkpoint)
    place = torch.device(device)
    if not kernels:
        return assemble(source, precision, place, ReferenceOperators())
    from sala_export.torch_runtime.kernel_operators import KernelOperators

    return assemble(source, precision, place, KernelOperators(source.config, precision, place))


def logits_of_calls(
    checkpoint: Path,
    calls: Sequence[Sequence[int]],
    *,
    kernels: bool,
    context_length: int,
    precision: Precision = Precision.FP32,
    device: str = "cpu",
    state: Path | None = None,
) -> list[NDArray[np.float32]]:
    """Logits after each call of one session, every call one step. Writes `state` in the end, if given.

    What a step may scribble on is poisoned before each of them.
    """
    model = torch_model(checkpoint, kernels=kernels, precision=precision, device=device)
    session = model.session(max_context=context_length, chunk_tokens=max(map(len, calls)))
    logits = []
    for call in calls:
        poison(model)
        logits.append(session.prefill(call, context_length=context_length))
    if state is not None:
        session.save(state)
    return logits


def poison(model: TorchModel) -> None:
    """Overwrite the arenas: a step must not find anything of the one before it there."""
    model.engine.decode_arena.device.fill_(POISON)
    model.engine.arena(model.engine.decode_layout).device.fill_(POISON)


def remember_executions(monkeypatch: pytest.MonkeyPatch) -> list[TorchExecution]:
    """Executions of the sessions that are made from now on, in order."""
    made: list[TorchExecution] = []
    create = TorchExecution.__init__

    def remember(self: TorchExecution, *arguments: object) -> None:
        create(self, *arguments)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(TorchExecution, "__init__", remember)
    return made


def greedy(session: Session, count: int) -> list[int]:
    return list(session.generate_tokens(max_new_tokens=count, stop_tokens=[]))
