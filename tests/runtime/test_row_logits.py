"""Logits of all tokens of a prompt and scores of a text, against the torch model and against tokens read one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close

import sala_export
from sala_export.errors import SessionError
from sala_export.runtime.model import Model

DENSE_LEN = 512
# Logits pass through five layers of fp32 sums in another order than torch's.
TOLERANCE = 3e-5
LENGTHS = [
    pytest.param(1, id="one token"),
    pytest.param(70, id="dense"),
    pytest.param(DENSE_LEN + 19, id="sparse"),
]


@pytest.fixture(scope="module")
def torch_model() -> sala_export.SalaForCausalLM:
    return sala_export.SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)


def random_ids(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 512, count)


def forward(model: sala_export.SalaForCausalLM, ids: NDArray[np.int64]) -> torch.Tensor:
    """Logits of every token, fp32 [tokens, vocab_size]."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(ids)[None])
    return logits[0]


def one_by_one(model: Model, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
    session = model.session(max_context=1024)
    return np.stack([session.prefill([each], context_length=len(ids)) for each in ids])


@pytest.mark.parametrize("tokens", LENGTHS)
def test_all_logits_equal_torch_and_tokens_read_one_by_one(
    model: Model, torch_model: sala_export.SalaForCausalLM, tokens: int
) -> None:
    ids = random_ids(tokens)
    expected, alone = forward(torch_model, ids), one_by_one(model, ids)
    assert_close(torch.from_numpy(alone), expected, TOLERANCE)
    for chunk in (1, 7, 64, 1024) if tokens < 100 else (64, 1024):
        session = model.session(max_context=1024, chunk_tokens=chunk)
        logits = session.prefill(ids, logits="all")
        assert logits.shape == (tokens, 512)
        assert logits.dtype == np.float32
        assert_close(torch.from_numpy(logits), expected, TOLERANCE)
        last = session.logits
        assert last is not None
        np.testing.assert_array_equal(last, logits[-1])


def test_prompt_that_turns_sparse_goes_on_from_a_dense_one(model: Model) -> None:
    ids = random_ids(DENSE_LEN + 50)
    session = model.session(max_context=1024, chunk_tokens=64)
    plain = model.session(max_context=1024, chunk_tokens=64)
    np.testing.assert_allclose(session.prefill(ids[:500], logits=[-1])[0], plain.prefill(ids[:500]), atol=1e-5)
    rows = session.prefill(ids[500:], logits="all")
    for token, each in enumerate(ids[500:]):
        wanted = plain.prefill([each], context_length=len(ids))
        np.testing.assert_allclose(rows[token], wanted, atol=1e-4)


def test_indices_count_from_either_end_and_keep_their_order(model: Model) -> None:
    ids = random_ids(300)
    rows = model.session().prefill(ids, logits="all")
    wanted = [7, -1, 0, 299, 7, -300]
    found = model.session().prefill(ids, logits=wanted)
    np.testing.assert_allclose(found, rows[wanted], atol=1e-5)
    assert model.session().prefill(ids, logits=np.array([], np.int64)).shape == (0, 512)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([3, 10], "a number of logits is 10, expected a whole number from -10 to 9"),
        ([-11], "a number of logits is -11, expected a whole number from -10 to 9"),
        ("first", "logits is 'first', expected last, all or a list of indices"),
        (3, "logits is 3, expected a list of whole numbers"),
    ],
)
def test_wrong_indices_are_refused_and_nothing_runs(model: Model, wanted: Any, message: str) -> None:
    session = model.session()
    with pytest.raises(SessionError, match=f"^{message}$"):
        session.prefill(random_ids(10), logits=wanted)
    assert session.position == 0


def test_stream_has_the_last_logits_alone(model: Model) -> None:
    session = model.session()
    with pytest.raises(SessionError, match="need it whole: give text or token ids"):
        session.prefill(iter([1, 2]), logits="all")
    with pytest.raises(SessionError, match="need it whole: give text or token ids"):
        session.score(iter([1, 2]))
    assert session.prefill(iter([1, 2])).shape == (512,)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_scores_equal_log_softmax_of_torch(model: Model, torch_model: sala_export.SalaForCausalLM, tokens: int) -> None:
    ids = random_ids(tokens, seed=1)
    expected = torch.log_softmax(forward(torch_model, ids).double(), -1)
    for chunk in (1, 64) if tokens < 100 else (64, 1024):
        scores = model.session(max_context=1024, chunk_tokens=chunk).score(ids, top=3)
        np.testing.assert_array_equal(scores.token_ids, ids)
        assert np.isnan(scores.logprobs[0])
        assert (scores.top_ids[0] == -1).all()
        assert np.isnan(scores.top_logprobs[0]).all()
        found = expected[torch.arange(tokens - 1), torch.from_numpy(ids[1:])].numpy()
        np.testing.assert_allclose(scores.logprobs[1:], found, atol=1e-4)
        np.testing.assert_allclose(scores.top_logprobs[1:], expected[:-1].topk(3).values.numpy(), atol=1e-4)
        if tokens == 1:
            assert np.isnan(scores.perplexity)
            continue
        assert scores.total == pytest.approx(found.sum(), rel=1e-6)
        assert scores.perplexity == pytest.approx(np.exp(-found.mean()), rel=1e-4)


def test_scores_do_not_depend_on_the_cuts_nor_on_what_was_drawn_before(model: Model) -> None:
    ids = random_ids(120, seed=2)
    whole = model.session().score(ids).logprobs
    session = model.session()
    parts = [session.score(ids[start : start + 40]).logprobs for start in range(0, 120, 40)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)

    session = model.session()
    session.prefill(ids[:50])
    (drawn,) = session.generate_tokens(max_new_tokens=1, stop_tokens=[])
    text = np.array([*ids[:50], drawn, *ids[50:]])
    np.testing.assert_allclose(session.score(ids[50:]).logprobs, model.session().score(text).logprobs[51:], atol=1e-4)


def test_what_progress_raises_comes_out_and_the_session_goes_on(model: Model) -> None:
    def refuse(progress: Any) -> None:
        if progress.tokens_done >= 100:
            raise RuntimeError("enough")

    ids = random_ids(200)
    session = model.session(chunk_tokens=50)
    with pytest.raises(RuntimeError, match="enough"):
        session.score(ids, on_progress=refuse)
    assert session.position == 100
    np.testing.assert_allclose(session.prefill(ids[100:]), model.session().prefill(ids), atol=1e-4)


def test_number_of_likeliest_tokens_is_checked(model: Model) -> None:
    with pytest.raises(SessionError, match="top is 21, expected a whole number from 0 to 20"):
        model.session().score([1, 2], top=21)
