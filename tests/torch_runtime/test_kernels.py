"""The torch runtime with this project's kernels, interpreted, against itself with the reference: the wiring of a GPU.

Workspaces that layers share, outputs in place, positions; all memory that a step may use is poisoned before each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.closeness import assert_close
from support.small_models import write_small_checkpoint
from support.torch_sessions import logits_of_calls, remember_executions, torch_model
from support.triton_compiler import compiled_decode_step
from support.triton_interpreter import call_interpreting
from torch.utils._python_dispatch import TorchDispatchMode

from sala_export.ops.common import triton_run
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.specs import Precision

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
LENGTH = 60
CUTS = (0, 40, 41, 59, 60)
"""Two prefill steps and two decode steps."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mixers = ("lightning-attn", "minicpm4", "lightning-attn", "minicpm4")
    return write_small_checkpoint(
        tmp_path_factory.mktemp("kernels") / "checkpoint", mixers, sparse_config=SPARSE, head_dim=32
    )


def calls(seed: int = 0) -> list[list[int]]:
    ids = np.random.default_rng(seed).integers(0, 97, LENGTH).tolist()
    return [ids[start:end] for start, end in pairwise(CUTS)]


def test_kernels_give_the_reference_logits_and_caches(checkpoint: Path, tmp_path: Path) -> None:
    state = tmp_path / "kernels.state"
    expected = logits_of_calls(checkpoint, calls(), kernels=False, context_length=LENGTH)
    actual = call_interpreting(
        partial(logits_of_calls, checkpoint, calls(), kernels=True, context_length=LENGTH, state=state)
    )
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(torch.from_numpy(ours), torch.from_numpy(theirs))
    # What the kernels left in the caches serves the reference.
    more = [[5, 6, 7]]
    whole = logits_of_calls(checkpoint, calls() + more, kernels=False, context_length=LENGTH + 3)
    restored = torch_model(checkpoint, kernels=False).restore(state, max_context=LENGTH + 3)
    assert_close(torch.from_numpy(restored.prefill(more[0])), torch.from_numpy(whole[-1]))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_kernels_in_sixteen_bits_stay_near_the_reference(checkpoint: Path, precision: Precision) -> None:
    # No row has a block to choose yet, which roundings would decide.
    few = [calls()[0][:31], [11]]
    expected = logits_of_calls(checkpoint, few, kernels=False, context_length=32, precision=precision)
    actual = call_interpreting(
        partial(logits_of_calls, checkpoint, few, kernels=True, context_length=32, precision=precision)
    )
    eps = torch.finfo(getattr(torch, precision.dtype)).eps
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), 8 * eps)


Launches = list[tuple[object, ...]]


class RecordedKernel:
    """Stands for a kernel that Triton would launch on a GPU."""

    def __init__(self, name: str, seen: Launches) -> None:
        self._name = name
        self._seen = seen

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **options: object) -> None:
            told = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
            self._seen.append((self._name, grid, *told, *options.items()))

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """All that would be launched, by address, grid and argument, instead of launching it."""
    from sala_export.torch_runtime import elementwise_kernels

    seen: Launches = []

    def record(bound: triton_run.BoundLaunch) -> None:
        told = [(k, x.data_ptr() if isinstance(x, torch.Tensor) else x) for k, x in bound.arguments.items()]
        seen.append((bound.launch.name, bound.grid, *told, *bound.options.items()))

    monkeypatch.setattr(triton_run.BoundLaunch, "run", record)
    for name in ("add_norm_kernel", "gated_product_kernel"):
        monkeypatch.setattr(elementwise_kernels, name, RecordedKernel(name, seen))
    return seen


def test_decode_steps_are_the_same_launches_on_the_same_memory(
    checkpoint: Path, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    executions = remember_executions(monkeypatch)
    session = torch_model(checkpoint, kernels=True).session(max_context=400, chunk_tokens=64)
    (execution,) = executions
    step = execution.decode_step
    by_position = []
    for prompt in (1, 62, 100, 63):
        session.prefill([7] * prompt, context_length=300)
        launches.clear()
        session.prefill([3], context_length=300)
        by_position.append(list(launches))
        assert execution.decode_step is step
    # Lightning operators launch 2 kernels, sparse ones 6, a layer 3 more; and there is the first norm.
    assert len(by_position[0]) == 2 * 2 + 2 * 6 + 4 * 3 + 1
    assert all(seen == by_position[0] for seen in by_position[1:])


class AtenCalls(TorchDispatchMode):
    """What torch is asked for beside kernels; a result that is not a view of `arena` or of a weight is refused."""

    def __init__(self, arena: torch.Tensor) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._arena = arena.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        self.names.add(str(function))
        assert isinstance(result, torch.Tensor), f"{function} gives the host a value"
        if function is not torch.ops.aten.t.default:
            assert result.untyped_storage().data_ptr() == self._arena, f"{function} allocates"
        return result


def test_decode_step_allocates_nothing_and_gives_the_host_nothing(
    checkpoint: Path, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    executions = remember_executions(monkeypatch)
    model = torch_model(checkpoint, kernels=True)
    session = model.session(max_context=400, chunk_tokens=64)
    session.prefill([1])
    (execution,) = executions
    calls = AtenCalls(model.engine.decode_arena.device)
    with calls, torch.inference_mode():
        execution.decode_step.run()
    assert {"aten.mm.out", "aten.index_select.out"} <= calls.names
    assert launches


def test_layers_share_workspaces(checkpoint: Path, launches: Launches) -> None:
    model = torch_model(checkpoint, kernels=True)
    session = model.session(max_context=400, chunk_tokens=64)
    session.prefill([7] * 64)
    arena = model.engine.arena(model.engine.decode_layout).device
    begin, end = arena.data_ptr(), arena.data_ptr() + len(arena)
    scratch = ("o_ptr", "squares_ptr", "carry_ptr", "chosen_ptr", "log_sum_ptr", "y_ptr")
    used: dict[str, set[int]] = {}
    of_operators = [launch for launch in launches if launch[0] not in ("add_norm_kernel", "gated_product_kernel")]
    for kernel, _, *arguments in of_operators:
        for name, value in arguments:  # type: ignore[misc]
            if name in scratch:
                assert begin <= value < end
                used.setdefault(f"{str(kernel).partition('_')[0]} {name}", set()).add(value)
    assert len(used) >= len(scratch)
    assert all(len(addresses) == 1 for addresses in used.values()), "layers of one kind share them"


def test_decode_step_of_the_published_model_compiles_as_the_launcher_asks_for_it() -> None:
    shared = compiled_decode_step(90)
    assert len(shared) == 2 + 2 + 6
    assert all(size <= AOT_ARCHITECTURES[90].shared_limit_bytes for size in shared.values()), shared
