"""The torch runtime on the CPU through the session interface: golden vectors, chunks, saved states, text of ids."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close
from support.golden import CASES, GOLDEN_CHECKPOINT, golden
from support.runtime_bundles import tiny_cpu_bundle
from support.torch_sessions import greedy, poison

import sala_export
from sala_export.runtime.model import Model
from sala_export.specs import Precision
from sala_export.torch_runtime.load import TorchModel, load_torch

CAPACITY = 1200


@pytest.fixture(scope="module")
def tiny() -> TorchModel:
    return load_torch(tiny_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def onnxruntime() -> Model:
    return sala_export.load(tiny_cpu_bundle(), threads=2)


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 512, count)


def test_logits_of_any_tokens_are_those_of_the_whole_context(tiny: TorchModel) -> None:
    ids = random_ids(600, seed=3)
    model = sala_export.SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)
    expected = model(torch.from_numpy(ids)[None])[0]
    session = tiny.session(max_context=CAPACITY, chunk_tokens=300)
    wanted = [0, 7, 8, 299, 300, 511, 599]
    poison(tiny)
    assert_close(as_tensor(session.prefill(ids, logits=wanted)), expected[wanted])
    session.reset()
    assert_close(as_tensor(session.prefill(ids, logits="all")), expected)


def as_tensor(logits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(logits)


@pytest.mark.parametrize("case", CASES)
def test_prefill_and_decode_give_the_published_logits(case: str) -> None:
    vectors = golden(case)
    model = sala_export.load(GOLDEN_CHECKPOINT, runtime="torch", device="cpu")
    session = model.session(max_context=2048, chunk_tokens=333)
    assert_close(as_tensor(session.prefill(vectors["input_ids"].numpy())), vectors["prefill_logits"][-1])
    for token, expected in zip(vectors["decode_ids"].tolist(), vectors["decode_logits"], strict=True):
        poison(model)
        assert_close(as_tensor(session.prefill([token])), expected)


@pytest.mark.parametrize("cuts", [(1, 8, 72, 579), tuple(range(585, 600))], ids=["uneven", "token by token"])
def test_chunks_do_not_change_logits(tiny: TorchModel, cuts: tuple[int, ...]) -> None:
    ids = random_ids(600, seed=1)
    expected = tiny.session(max_context=CAPACITY, chunk_tokens=600).prefill(ids)
    session = tiny.session(max_context=CAPACITY)
    for start, end in pairwise((0, *cuts, 600)):
        poison(tiny)
        logits = session.prefill(ids[start:end], context_length=600)
    assert_close(as_tensor(logits), as_tensor(expected))


@pytest.mark.parametrize("saved_by", ["torch", "onnxruntime"])
def test_state_of_one_runtime_goes_on_in_the_other(
    tiny: TorchModel, onnxruntime: Model, tmp_path: Path, saved_by: str
) -> None:
    first, second = (tiny, onnxruntime) if saved_by == "torch" else (onnxruntime, tiny)
    assert first.precision == second.precision == "fp32"
    ids = random_ids(610, seed=2)
    session = first.session(max_context=CAPACITY)
    session.prefill(ids[:600])
    session.save(tmp_path / "a.state")
    restored = second.restore(tmp_path / "a.state", max_context=700, chunk_tokens=4)
    assert_close(as_tensor(restored.prefill(ids[600:])), as_tensor(session.prefill(ids[600:])), 3e-5)


def test_generated_tokens_and_a_pending_one_survive_a_restore(tiny: TorchModel, tmp_path: Path) -> None:
    session = tiny.session(max_context=CAPACITY)
    session.prefill(random_ids(40))
    before = greedy(session, 3)
    session.save(tmp_path / "a.state")
    restored = tiny.restore(tmp_path / "a.state")
    assert restored.tokens.tolist() == [*random_ids(40), *before]
    assert greedy(restored, 4) == greedy(session, 4)


def test_generation_equals_that_of_the_other_runtime(tiny: TorchModel, onnxruntime: Model) -> None:
    tokens = []
    for model in (tiny, onnxruntime):
        session = model.session(max_context=CAPACITY)
        session.prefill(random_ids(50, seed=3))
        tokens.append(greedy(session, 12))
    assert tokens[0] == tokens[1]


def test_reset_session_equals_a_new_one(tiny: TorchModel) -> None:
    session = tiny.session(max_context=CAPACITY)
    expected = session.prefill(random_ids(90))
    session.prefill(random_ids(50, seed=9))
    session.reset()
    np.testing.assert_array_equal(session.prefill(random_ids(90)), expected)


def test_sessions_with_chunks_of_their_own_do_not_touch_each_other(tiny: TorchModel) -> None:
    ids = random_ids(120, seed=4)
    alone = tiny.session(max_context=CAPACITY).prefill(ids)
    first = tiny.session(max_context=CAPACITY, chunk_tokens=30)
    first.prefill(ids[:60], context_length=120)
    # The second needs a larger arena, which takes the place of the first one's.
    second = tiny.session(max_context=CAPACITY, chunk_tokens=700)
    second.prefill(random_ids(650, seed=5))
    assert_close(as_tensor(first.prefill(ids[60:])), as_tensor(alone))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_follow_the_reference_model(precision: str) -> None:
    model = load_torch(tiny_checkpoint(), device="cpu", precision=precision)
    ids = random_ids(80, seed=6)
    session = model.session(max_context=100, chunk_tokens=33)
    expected = model.reference.model(torch.from_numpy(ids)[None])[0, -1]
    # Sums of other chunks, rounded to 16 bits in five layers.
    assert_close(as_tensor(session.prefill(ids)), expected, 16 * torch.finfo(model.reference.dtype).eps)


def test_weights_are_held_once(tiny: TorchModel) -> None:
    packed = tiny.reference
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in packed.model.parameters()}
    assert sum(storages.values()) == tiny.memory(1024).weights_bytes
    for layer, matrix in zip(packed.model.model.layers, packed.mixer_in, strict=True):
        assert layer.self_attn.q_proj.weight.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr()


def test_bundle_and_checkpoint_are_one_model(tiny: TorchModel) -> None:
    bundle = load_torch(tiny_cpu_bundle(), device="cpu")
    ids = random_ids(30)
    np.testing.assert_array_equal(
        bundle.session(max_context=64).prefill(ids), tiny.session(max_context=64).prefill(ids)
    )
    assert bundle._native.fingerprint == tiny._native.fingerprint
    assert bundle.precision == str(Precision.FP32)


def test_auto_never_imports_torch() -> None:
    code = (
        "import sys, sala_export\n"
        f"sala_export.load({str(tiny_cpu_bundle())!r}, threads=1).session(max_context=64).prefill([1, 2, 3])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
