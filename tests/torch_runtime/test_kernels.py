"""The torch runtime with this project's kernels, interpreted, against itself with the reference: the wiring of a GPU.

Workspaces that layers share, outputs in place, positions; all memory that a step may use is poisoned before each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.closeness import assert_close
from support.kernel_probes import elementwise
from support.small_models import write_small_checkpoint
from support.torch_batches import CAPACITY, execution_on, new_caches
from support.torch_sessions import SPARSE, logits_of_calls, remember_executions, torch_model
from support.triton_compiler import call_compiling, compiled_ptx
from support.triton_interpreter import call_interpreting
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kernel_compilation import elementwise_jobs
from sala_export.checkpoint.presets import PRESETS
from sala_export.errors import UnsupportedError
from sala_export.model.mixers import MIXERS
from sala_export.ops.common import triton_run
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.specs import Precision
from sala_export.torch_runtime.kernel_operators import KernelOperators

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
    # Two layers of each operator, in each 3 launches beside its own, and the first norm.
    own = sum(len(KERNEL_SETS[kind.contract.name].decode) for kind in MIXERS.values())
    assert len(by_position[0]) == 2 * own + 4 * 3 + 1
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


@pytest.mark.parametrize("batch", [1, 3])
def test_decode_step_allocates_nothing_and_gives_the_host_nothing(
    checkpoint: Path, launches: Launches, batch: int
) -> None:
    engine = torch_model(checkpoint, kernels=True).engine
    caches = new_caches(engine, batch, CAPACITY)
    execution = execution_on(engine, caches, batch)
    _, arena = engine.decode_memory(batch)
    arena.device.zero_()
    calls = AtenCalls(arena.device)
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


@pytest.mark.parametrize("sm", [90, 120])
def test_rows_of_the_published_model_are_read_and_written_by_sixteen_bytes(sm: int) -> None:
    for ptx in call_compiling(compiled_ptx, elementwise_jobs(4096, 16384, "bfloat16"), sm):
        accesses = re.findall(r"\b(?:ld|st)\.global[.\w]*", ptx)
        assert len(accesses) >= 3
        assert {access.partition("global")[2] for access in accesses} == {".v4.b32"}


@pytest.mark.parametrize(("hidden_size", "width"), [(50, 83), (1, 1), (4100, 2051)])
def test_rows_of_any_size_come_out_right(hidden_size: int, width: int) -> None:
    generator = torch.Generator().manual_seed(hidden_size)
    hidden, delta, gate_up = (torch.randn(3, n, generator=generator) for n in (hidden_size, hidden_size, 2 * width))
    weight = torch.randn(hidden_size, generator=generator)
    stream, normed, gated = call_interpreting(elementwise, hidden, delta, weight, gate_up)
    expected = hidden.double() + 0.25 * delta.double()
    gate, up = gate_up.double().chunk(2, dim=1)
    assert_close(stream, expected)
    assert_close(normed, functional.rms_norm(expected, (hidden_size,), weight.double(), 1e-6))
    assert_close(gated, functional.silu(gate) * up)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    return _pretend(monkeypatch, (9, 0))


def _pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> torch.device:
    """A device that says it has a compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return torch.device("cuda")


@pytest.mark.parametrize(("capability", "is_served"), [((8, 6), False), ((9, 0), True), ((12, 0), False)])
def test_model_whose_float32_tiles_do_not_fit_is_refused_when_it_is_loaded(
    capability: tuple[int, int], is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, config = _pretend(monkeypatch, capability), PRESETS["tiny"].config
    KernelOperators(config, Precision.BF16, device)
    if is_served:
        KernelOperators(config, Precision.FP32, device)
        return
    with pytest.raises(
        UnsupportedError, match=r"^InfLLMv2Attention: head_dim is 64, in float32 .*: choose bf16 or fp16$"
    ):
        KernelOperators(config, Precision.FP32, device)


def test_head_size_with_fewer_elements_than_threads_is_refused_when_a_model_is_loaded(h100: torch.device) -> None:
    config = replace(PRESETS["tiny"].config, head_dim=16)
    with pytest.raises(UnsupportedError, match=r"head_dim is 16, kernels need >= 32: .*threads"):
        KernelOperators(config, Precision.BF16, h100)


@pytest.mark.parametrize(
    ("triton", "capability", "is_served"),
    [("3.7.1", (12, 0), False), ("3.8.0", (12, 0), True), ("3.10.0", (12, 0), True), ("3.6.0", (9, 0), True)],
)
def test_triton_that_miscompiles_for_blackwell_is_refused(
    triton: str, capability: tuple[int, int], is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_run.triton, "__version__", triton)
    device = _pretend(monkeypatch, capability)
    if is_served:
        assert triton_run.served_architecture(device) == 10 * capability[0]
        return
    with pytest.raises(UnsupportedError, match=r"^Triton 3\.7\.1 compiles .*SM120 .*: install triton>=3\.8,<3\.10$"):
        triton_run.served_architecture(device)
