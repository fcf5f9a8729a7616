"""Decode steps of several sequences in the torch runtime: every row is as its sequence alone, and no other is written.

All memory that a step may use is poisoned before each, and caches hold NaN where no token is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from support.calibration import quantized_tiny
from support.closeness import assert_close
from support.small_models import write_small_checkpoint
from support.torch_batches import (
    CAPACITY,
    execution_on,
    new_caches,
    outcomes_of,
    require_alike,
    run_step,
    small_outcomes,
)
from support.torch_sessions import SPARSE, torch_model
from support.triton_interpreter import call_interpreting
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.specs import Precision
from sala_export.torch_runtime import engine as engine_module
from sala_export.torch_runtime.load import TorchModel, load_torch

LENGTHS = [
    (0, 45),
    (0, 0),
    # The step that completes the first window, the one before it, and that which turns the context sparse.
    (7, 6, 31),
    # Windows of both kinds: k1 after 8, 12, 16 ... tokens, k2 after 32, 48 ...
    (0, 1, 8, 11, 30, 46, 47, 60),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mixers = ("lightning-attn", "minicpm4", "lightning-attn", "minicpm4")
    return write_small_checkpoint(
        tmp_path_factory.mktemp("batches") / "checkpoint", mixers, sparse_config=SPARSE, head_dim=32
    )


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TorchModel:
    return torch_model(checkpoint, kernels=False)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_batch_gives_each_row_what_its_sequence_gets_alone(model: TorchModel, lengths: tuple[int, ...]) -> None:
    require_alike(outcomes_of(model.engine, lengths, [len(lengths)] * 3), assert_close)


def test_batches_of_several_sizes_go_on_with_the_same_caches(model: TorchModel) -> None:
    require_alike(outcomes_of(model.engine, (30, 0, 50), [3, 1, 2, 3, 2]), assert_close)


def test_chunks_give_the_rows_that_are_asked_for(model: TorchModel, checkpoint: Path) -> None:
    ids = torch.randint(0, model.source.config.vocab_size, (28,), generator=torch.Generator().manual_seed(2))
    expected = SalaForCausalLM.from_pretrained(checkpoint)(ids[None])[0]
    caches = new_caches(model.engine, 1, CAPACITY)
    execution = execution_on(model.engine, caches, 1)
    # Chunks of one length with numbers of rows that change, in any order and one twice, then one token alone.
    chunks = {(0, 9): [8], (9, 18): [3, 8, 3, 0], (18, 27): [*range(9)], (27, 28): [0]}
    for (start, end), rows in chunks.items():
        found = run_step(model.engine, execution, [ids[start:end].tolist()], [start], rows)
        assert_close(found, expected[start:end][rows])


def test_kernels_give_each_row_what_its_sequence_gets_alone(checkpoint: Path) -> None:
    lengths, sizes = (47, 0), [2]
    found = call_interpreting(partial(small_outcomes, checkpoint, lengths, sizes, kernels=True))
    require_alike(found, assert_close)
    expected = small_outcomes(checkpoint, lengths, sizes, kernels=False)
    for ours, theirs in zip(found.batch, expected.batch, strict=True):
        assert_close(torch.stack(ours.logits), torch.stack(theirs.logits))


def test_sixteen_bits_round_each_row_as_its_sequence_alone(checkpoint: Path) -> None:
    # No row has a block to choose yet, which roundings would decide.
    found = small_outcomes(checkpoint, (0, 30, 12), [3], kernels=False, precision=Precision.BF16)
    require_alike(found, partial(assert_close, tolerance=16 * torch.finfo(torch.bfloat16).eps))


def test_quantised_products_round_each_row_as_its_sequence_alone() -> None:
    def require_near(found: Tensor, expected: Tensor) -> None:
        # A number over the middle between two codes goes another way where sums round differently.
        assert float((found - expected).norm()) <= 0.03 * float(expected.norm())

    engine = load_torch(quantized_tiny(Precision.INT8), device="cpu").engine
    require_alike(outcomes_of(engine, (0, 20, 45), [3, 3]), require_near)


def test_each_size_has_an_arena_that_stays_where_it_is(model: TorchModel) -> None:
    engine = model.engine
    caches = new_caches(engine, 5, CAPACITY)
    kept = {}
    for size in (5, 4, 1, 4, 5):
        execution = execution_on(engine, caches, size)
        layout, arena = engine.decode_memory(size)
        assert len(arena.device) == layout.total_bytes == engine.layout(1, size).total_bytes
        assert kept.setdefault(size, arena) is arena
        begin, end = arena.device.data_ptr(), arena.device.data_ptr() + len(arena.device)
        assert begin <= execution.decode_step.logits.data_ptr() < end
    assert len(kept) == 3
    assert kept[1] is engine.decode_arena


def test_batch_without_room_is_refused_and_made_when_there_is(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = torch_model(checkpoint, kernels=False).engine
    caches = new_caches(engine, 2, CAPACITY)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "new_bytes", _no_room)
        execution_on(engine, caches, 1)
        with pytest.raises(MemoryError, match="no room"):
            execution_on(engine, caches, 2)
    logits = run_step(engine, execution_on(engine, caches, 2), [[1], [2]], [0, 0])
    assert logits.isfinite().all()


def _no_room(device: torch.device, size: int) -> Tensor:
    raise MemoryError("no room")
