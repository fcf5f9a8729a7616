"""What the runtime computes, against the torch model and the published one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close
from support.golden import CASES, GOLDEN_CHECKPOINT, golden
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

CAPACITY = 2048
# Logits pass through five layers of fp32 sums in another order than torch's.
TOLERANCE = 3e-5


@pytest.fixture(scope="module")
def torch_model() -> sala_export.SalaForCausalLM:
    return sala_export.SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 512, count)


def as_tensor(logits: np.ndarray | None) -> torch.Tensor:
    assert logits is not None
    return torch.from_numpy(logits)


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(1, id="one token"),
        pytest.param(511, id="longest dense context"),
        pytest.param(512, id="shortest sparse context"),
        pytest.param(1403, id="rows that choose blocks"),
    ],
)
def test_prefill_logits_equal_torch(model: Model, torch_model: sala_export.SalaForCausalLM, tokens: int) -> None:
    ids = random_ids(tokens, seed=1)  # with seed 0 rounding decides about a block, so that compilers differ
    expected = torch_model(torch.from_numpy(ids)[None])[0, -1]
    assert_close(as_tensor(model.session(max_context=CAPACITY).prefill(ids)), expected, TOLERANCE)


def test_decode_across_dense_len_equals_torch(model: Model, torch_model: sala_export.SalaForCausalLM) -> None:
    ids = torch.from_numpy(random_ids(530))
    session = model.session(max_context=CAPACITY)
    caches = torch_model.new_caches(1, CAPACITY)
    for start, end in pairwise([0, 500, *range(501, 531)]):
        past, context = (torch.tensor([n], dtype=torch.int32) for n in (start, end))
        last = torch.tensor([end - start - 1], dtype=torch.int32)
        expected, caches = torch_model.step(
            ids[None, start:end], past, context, torch_model.rope(past, end - start), last, caches
        )
        assert_close(as_tensor(session.prefill(ids[start:end].numpy())), expected[0], TOLERANCE)


def test_explicit_context_length_makes_a_short_part_sparse(
    model: Model, torch_model: sala_export.SalaForCausalLM
) -> None:
    ids = random_ids(900)
    session = model.session(max_context=CAPACITY)
    for part in np.split(ids, [400]):
        logits = session.prefill(part, context_length=900)
    assert_close(as_tensor(logits), torch_model(torch.from_numpy(ids)[None])[0, -1], TOLERANCE)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1000])
def test_chunk_size_and_restore_in_the_middle_do_not_change_logits(
    model: Model, tmp_path: Path, chunk_tokens: int
) -> None:
    ids = random_ids(1100, seed=1)
    expected = model.session(max_context=CAPACITY, chunk_tokens=2000).prefill(ids)
    session = model.session(max_context=1100, chunk_tokens=chunk_tokens)
    session.prefill(ids[:613], context_length=1100)
    session.save(tmp_path / "half.state")
    restored = model.restore(tmp_path / "half.state", max_context=1200, chunk_tokens=chunk_tokens)
    assert_close(as_tensor(restored.prefill(ids[613:])), torch.from_numpy(expected), 1e-5)


def test_restored_session_continues_with_exactly_the_same_logits(model: Model, tmp_path: Path) -> None:
    ids = random_ids(700, seed=2)
    session = model.session(max_context=CAPACITY)
    session.prefill(ids[:600])
    session.save(tmp_path / "a.state")
    restored = model.restore(tmp_path / "a.state")
    np.testing.assert_array_equal(restored.prefill(ids[600:]), session.prefill(ids[600:]))


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    bundle = tmp_path_factory.mktemp("golden") / "golden.sala"
    return sala_export.load(write_cpu_bundle(GOLDEN_CHECKPOINT, bundle), threads=2)


@pytest.mark.parametrize("tokens", [1023, 1024, 1025, 1700])
def test_streamed_prompt_is_dense_or_sparse_as_a_whole_one(golden_model: Model, tokens: int) -> None:
    dense_len = 1024
    ids = np.random.default_rng(6).integers(0, golden_model.vocab_size, tokens)
    whole, streamed, sparse = (golden_model.session(max_context=CAPACITY, chunk_tokens=300) for _ in range(3))
    logits = whole.prefill(ids)
    np.testing.assert_array_equal(streamed.prefill(iter(np.array_split(ids, 17))), logits)
    # Here, unlike in the tiny model, a context that is as long as this has blocks that are not chosen.
    is_sparse = np.array_equal(sparse.prefill(ids, context_length=max(tokens, dense_len)), logits)
    assert is_sparse == (tokens >= dense_len)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_published_model(case: str, golden_model: Model) -> None:
    vectors = golden(case)
    session = golden_model.session(max_context=CAPACITY, chunk_tokens=300)
    prefill = as_tensor(session.prefill(vectors["input_ids"].numpy()))
    decode = [as_tensor(session.prefill([token])) for token in vectors["decode_ids"].tolist()]
    largest = _largest([vectors["prefill_logits"], vectors["decode_logits"]])
    assert (prefill - vectors["prefill_logits"][-1]).abs().max().item() <= TOLERANCE * largest
    assert (torch.stack(decode) - vectors["decode_logits"]).abs().max().item() <= TOLERANCE * largest


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors)


def test_sessions_of_one_model_do_not_touch_each_other(model: Model) -> None:
    ids = random_ids(120, seed=3)
    alone = model.session(max_context=CAPACITY).prefill(ids)
    first, second = (model.session(max_context=CAPACITY, chunk_tokens=50) for _ in range(2))
    first.prefill(ids[:60], context_length=120)
    second.prefill(random_ids(77, seed=4))
    # The same chunks in the same order as another session that has the model for itself.
    reference = model.session(max_context=CAPACITY, chunk_tokens=50)
    reference.prefill(ids[:60], context_length=120)
    logits = first.prefill(ids[60:])
    np.testing.assert_array_equal(logits, reference.prefill(ids[60:]))
    assert_close(as_tensor(logits), torch.from_numpy(alone))


def test_reset_session_equals_a_new_one(model: Model) -> None:
    session = model.session(max_context=CAPACITY)
    expected = session.prefill(random_ids(90))
    session.prefill(random_ids(50, seed=9))
    session.reset()
    assert session.position == 0
    np.testing.assert_array_equal(session.prefill(random_ids(90)), expected)


def greedy(session: Session, count: int) -> list[int]:
    return list(session.generate_tokens(max_new_tokens=count, stop_tokens=[]))


def test_greedy_generation_follows_torch(model: Model, torch_model: sala_export.SalaForCausalLM) -> None:
    ids = random_ids(40, seed=5)
    session = model.session(max_context=CAPACITY)
    session.prefill(ids)
    tokens = greedy(session, 8)
    context = torch.from_numpy(np.concatenate([ids, tokens]))
    logits = torch_model(context[None])[0]
    assert tokens == logits[39:-1].argmax(-1).tolist()
