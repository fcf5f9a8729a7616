"""What the torch runtime refuses to load, and what it says of its memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.bundles import copy_bundle
from support.checkpoints import edit_json, tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export.building.planned_graph import planned_graph, planned_memory
from sala_export.checkpoint import keymap
from sala_export.checkpoint.presets import PRESETS
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import (
    BundleError,
    CheckpointError,
    RequestError,
    RunError,
    SalaError,
    SessionError,
    UnsupportedError,
)
from sala_export.model.signature import signature
from sala_export.specs import DType, Precision
from sala_export.torch_runtime import engine, weights
from sala_export.torch_runtime.kernel_operators import KernelOperators
from sala_export.torch_runtime.layout import cache_bytes, step_layout
from sala_export.torch_runtime.load import load_torch

GIB = 2**30
HOST_PAGE_BYTES = 64 << 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "abacus"}, RequestError, "device abacus is unknown: choose cuda, cuda:N or cpu"),
        ({"device": "meta"}, RequestError, "device meta is not served"),
        ({"device": "cuda:64"}, UnsupportedError, "device cuda:64: torch finds"),
        ({"precision": "fp8"}, RequestError, "precision fp8 is unknown: the torch runtime runs fp32, bf16, fp16"),
        ({"device": 1.5}, RequestError, "device is 1.5, expected text"),
        ({"device": 10**5000}, RequestError, "device is a number of 16610 bits"),
        ({"precision": 32}, RequestError, "precision is 32, expected text"),
        ({"verify_hashes": "no"}, SessionError, "verify_hashes is 'no', expected True or False"),
        *(({"threads": value}, SessionError, "threads is ") for value in (-1, 1025, 100_000, 10**30, 1.5, "2", None)),
        ({"operators_library": Path("x.so")}, RequestError, "operators_library: not for the torch runtime"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, object], error: type[SalaError], message: str) -> None:
    with pytest.raises(error, match=message):
        sala_export.load(tiny_checkpoint(), runtime="torch", **{"device": "cpu", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"device": "cpu"}, {"precision": "fp32"}])
def test_option_of_the_torch_runtime_is_refused_elsewhere(option: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="is for the torch runtime"):
        sala_export.load(tiny_cpu_bundle(), **option)


def test_bundle_without_weights_is_refused(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_cpu_bundle(), tmp_path / "copy.sala")

    def drop(fields: dict[str, object]) -> None:
        fields["weights"]["included"] = False  # type: ignore[index]

    edit_json(bundle / "bundle.json", drop)
    with pytest.raises(BundleError, match="--no-weights"):
        load_torch(bundle, device="cpu")


def test_weights_of_another_form_are_refused(tmp_path: Path) -> None:
    other = PRESETS["tiny"].config
    with pytest.raises(CheckpointError, match="among its weights"):
        Checkpoint.of_files(tmp_path, other, [])


def test_weights_larger_than_the_gpu_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(weights, "_load", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 * GIB, 8 * GIB))
    with pytest.raises(RunError, match=r"the weights take .* MiB in bf16 .* which has 5.00 GiB left"):
        weights.load_packed(Checkpoint.open(tiny_checkpoint()), Precision.BF16, torch.device("cpu"))


def test_account_is_what_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    allocate = engine.new_bytes
    monkeypatch.setattr(engine, "new_bytes", lambda device, size: taken.append(size) or allocate(device, size))
    model = load_torch(tiny_checkpoint(), device="cpu")
    session = model.session(max_context=400, chunk_tokens=64)
    session.prefill(list(range(200)))
    account = model.memory(400, 64)
    assert sum(taken) == account.step_bytes + account.decode_bytes
    session.prefill(list(range(200)))
    assert sum(taken) == account.total_bytes - account.weights_bytes - account.cache_bytes, "steps allocate nothing"
    # The context is full. A cache ends within a page, and has rows of windows that end behind the context.
    caches = signature(model.source.config, DType.FLOAT32).caches
    assert abs(model.cache_bytes - account.cache_bytes) < len(caches) * HOST_PAGE_BYTES
    del session
    assert model.cache_bytes == 0


@pytest.mark.parametrize(
    ("free", "advice"), [(16 * 2**20, "chunk_tokens 256 would fit"), (0, "end what else runs there")]
)
def test_chunks_too_large_say_by_how_much_and_what_fits(
    monkeypatch: pytest.MonkeyPatch, free: int, advice: str
) -> None:
    model = load_torch(tiny_checkpoint(), device="cpu")
    # The refusal is a GPU's; only where it asks for its size is told otherwise.
    monkeypatch.setattr(engine, "free_bytes", lambda _: engine.LIBRARY_BYTES + free)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Imaginary GPU 7")
    monkeypatch.setattr(engine.TorchEngine, "device", 0)
    expected = rf"steps of chunk_tokens 8192 need .* on the Imaginary GPU 7, .* more than is free: {advice}"
    with pytest.raises(RunError, match=expected) as told:
        model.session(max_context=1024, chunk_tokens=8192)
    assert told.value.code == "OutOfMemory"
    assert model.cache_bytes == 0


def test_9b_with_a_million_tokens_takes_what_plan_predicts_and_fits_32_gigabytes() -> None:
    config = PRESETS["9b"].config
    operators = KernelOperators(config, Precision.BF16, torch.device("cpu"))
    layout = step_layout(config, Precision.BF16, 8192, operators.workspaces, 1 << 20)
    assert 0.6 * GIB < layout.total_bytes < 0.7 * GIB
    caches = cache_bytes(config, Precision.BF16, 1 << 20)
    # docs/model.md: 8 GiB of keys and values, 320 MiB of compressed keys, 48 MiB of states.
    assert abs(caches - (8 * GIB + 368 * 2**20)) < 2**16
    elements = sum(weight.elements for weight in keymap.weights(config))
    total = 2 * elements + layout.total_bytes + caches
    request = EngineRequest.from_options(
        load_target("rtx5090"), precision="bf16", max_context=1 << 20, prefill_chunk=8192, max_batch=1
    )
    planned = planned_memory(planned_graph(config, request.precision), config, request)
    assert total == pytest.approx(planned.total_bytes, rel=0.03)
    (gpu,) = request.target.gpus
    assert total < gpu.memory_bytes - gpu.reserve_bytes
