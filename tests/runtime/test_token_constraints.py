"""Constraints written in Python, and log-probabilities, in every way to draw an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cyclic_text import CyclicTokenizer
from support.small_sessions import new_session, random_ids, small_model

from sala_export.errors import SessionError
from sala_export.runtime.logprobs import TokenLogprobs
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

COUNT = 12
Draw = Callable[[Model, Session, dict[str, Any]], Iterator[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    for loaded in small_model("onnxruntime", tmp_path_factory.mktemp("constraints")):
        yield Model(loaded._native, CyclicTokenizer())


class Listed:
    """Token n of an answer is one of `each[n]`; None stands for every token."""

    def __init__(self, *each: list[int] | None) -> None:
        self.each = each
        self.taken: list[int] = []

    def allowed(self) -> NDArray[np.uint32] | None:
        tokens = self.each[len(self.taken) % len(self.each)]
        if tokens is None:
            return None
        words = np.zeros(max(tokens, default=-1) // 32 + 1, np.uint32)
        for token in tokens:
            words[token // 32] |= np.uint32(1 << token % 32)
        return words

    def take(self, token_id: int) -> None:
        self.taken.append(token_id)


def generated(model: Model, session: Session, options: dict[str, Any]) -> Iterator[int]:
    return session.generate_tokens(**options)


def submitted(model: Model, session: Session, options: dict[str, Any]) -> Iterator[int]:
    return model.scheduler().submit_tokens(session, **options)


def read(model: Model) -> Session:
    session = new_session(model)
    session.prefill(random_ids(40))
    return session


@pytest.mark.parametrize("draw", [generated, submitted])
def test_constraint_holds_for_every_token(draw: Draw, model: Model) -> None:
    each = [[5, 96], [31, 32, 33], None, [7, 8, 9, 64]]
    constraint = Listed(*each)
    options = {"max_new_tokens": COUNT, "stop_tokens": [], "temperature": 2.0, "constraint": constraint}
    tokens = list(draw(model, read(model), options))
    assert len(tokens) == COUNT
    assert constraint.taken == tokens
    for place, token in enumerate(tokens):
        kept = each[place % len(each)]
        assert kept is None or token in kept
    ended = Listed([5], [6], [7])
    assert list(draw(model, read(model), {"stop_tokens": [7], "constraint": ended})) == [5, 6]
    assert ended.taken == [5, 6, 7]


@pytest.mark.parametrize("draw", [generated, submitted])
@pytest.mark.parametrize("method", ["allowed", "take"])
def test_what_a_constraint_raises_comes_out_as_it_is(draw: Draw, method: str, model: Model) -> None:
    class Stopped(BaseException):
        pass

    class Failing(Listed):
        def allowed(self) -> NDArray[np.uint32] | None:
            if method == "allowed" and len(self.taken) == 3:
                raise Stopped
            return super().allowed()

        def take(self, token_id: int) -> None:
            super().take(token_id)
            if method == "take" and len(self.taken) == 4:
                raise Stopped

    session = read(model)
    tokens: list[int] = []
    with pytest.raises(Stopped):
        tokens.extend(draw(model, session, {"stop_tokens": [], "constraint": Failing(None)}))
    constraint = Failing(None)
    pieces = draw(model, read(model), {"stop_tokens": [], "constraint": constraint})
    found = [next(pieces) for _ in range(3)]
    with pytest.raises(Stopped):
        next(pieces)
    assert found == constraint.taken[:3]
    assert session.position == 40 + (3 if method == "allowed" else 4)
    expected = new_session(model)
    expected.prefill(random_ids(40))
    for token in constraint.taken:
        logits = expected.prefill([token])
    np.testing.assert_allclose(session.prefill([5]), expected.prefill([5]), rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("draw", [generated, submitted])
def test_wrong_constraints_are_refused(draw: Draw, model: Model) -> None:
    session = read(model)
    with pytest.raises(SessionError, match="allows no token here"):
        list(draw(model, session, {"constraint": Listed([])}))

    class Wrong(Listed):
        def allowed(self) -> Any:
            return self.value

    for value in ([1, 2], np.ones(3), np.ones((2, 2), np.uint32), np.ones(8, np.uint32)[::2], "all"):
        constraint = Wrong()
        constraint.value = value
        with pytest.raises(SessionError, match=r"allowed\(\) of the constraint returned a value of type"):
            list(draw(model, session, {"constraint": constraint}))
    for wrong in (5, object()):
        with pytest.raises(SessionError, match="expected an object with the methods allowed and take"):
            draw(model, session, {"constraint": wrong})
    with pytest.raises(SessionError, match="a batch takes no constraint"):
        model.generate_batch_tokens([session], constraint=Listed(None))
    assert session.position == 40


def expected_logprobs(model: Model, tokens: list[int], top: int) -> list[TokenLogprobs]:
    session, found = read(model), []
    for token in tokens:
        logits = session.logits
        assert logits is not None
        exact = logits.astype(np.float64)
        exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
        order = np.lexsort((np.arange(len(exact)), -logits))[:top].tolist()
        found.append(
            TokenLogprobs(
                token_id=token, logprob=float(exact[token]), top=tuple((each, float(exact[each])) for each in order)
            )
        )
        session.prefill([token])
    return found


def assert_same(found: list[TokenLogprobs], expected: list[TokenLogprobs]) -> None:
    assert [each.token_id for each in found] == [each.token_id for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
        values, wanted = ([each.logprob, *(value for _, value in each.top)] for each in (ours, theirs))
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("top", [0, 4])
@pytest.mark.parametrize("draw", [generated, submitted])
def test_log_probabilities_come_with_their_tokens(draw: Draw, top: int, model: Model) -> None:
    session = read(model)
    options = {"max_new_tokens": COUNT, "stop_tokens": [], "temperature": 1.5, "logit_bias": {5: -100.0}}
    pieces = draw(model, session, {**options, "logprobs": top})
    tokens, found = [], []
    for token in pieces:
        tokens.append(token)
        found += session.logprobs
        assert len(session.logprobs) == 1
    assert_same(found, expected_logprobs(model, tokens, top))
    list(draw(model, session, options))
    assert session.logprobs == [], "nobody asked"


def test_pieces_of_text_have_the_tokens_behind_them(model: Model) -> None:
    options = {"max_new_tokens": COUNT, "stop_tokens": [], "logprobs": 2, "stop_strings": "no such text"}
    session, taking = read(model), read(model)
    found, all_at_once = [], []
    for _ in session.generate(**options):
        found += session.logprobs
    with model.scheduler() as scheduler:
        stepwise = scheduler.submit(read(model), **options)
        by_steps = [each for _ in stepwise for each in stepwise.logprobs]
        answer = scheduler.submit(taking, **options)
        while not answer.is_done:
            answer.wait(60)
            answer.taken()
            all_at_once += answer.logprobs
        assert answer.taken() == answer.logprobs == []
    tokens = taking.tokens[40:].tolist()
    expected = expected_logprobs(model, tokens, 2)
    for each in (found, by_steps, all_at_once):
        assert_same(each, expected)


def test_batches_have_log_probabilities(model: Model) -> None:
    sessions = [read(model), read(model)]
    options = {"max_new_tokens": 5, "stop_tokens": [], "logprobs": 3, "temperature": 1.5}
    found: list[list[TokenLogprobs]] = [[], []]
    for _ in model.generate_batch_tokens(sessions, **options):
        for place, session in enumerate(sessions):
            found[place] += session.logprobs
    for place, session in enumerate(sessions):
        assert_same(found[place], expected_logprobs(model, session.tokens[40:].tolist(), 3))
    for wrong in (-1, 21, True, "5"):
        with pytest.raises(SessionError, match="logprobs is"):
            sessions[0].generate_tokens(logprobs=wrong)  # type: ignore[arg-type]


def test_checkpoints_are_kept_where_the_caller_wants_them(model: Model) -> None:
    ids = random_ids(300)
    session, expected = new_session(model), new_session(model)
    expected.prefill(ids)
    with model.scheduler() as scheduler:
        answer = scheduler.submit_tokens(session, ids, checkpoints=np.array([7, 100, 290]), max_new_tokens=0)
        assert list(answer) == []
        assert answer.progress.prompt_tokens_done == 300
        for wrong in ([300], [600], [301.5], "7", 7, [310, 305]):
            with pytest.raises(SessionError, match="checkpoints"):
                scheduler.submit_tokens(session, ids, checkpoints=wrong)
    assert {7, 100, 290} <= {*session.checkpoints}
    largest = np.abs(expected.logits).max()
    np.testing.assert_allclose(session.logits, expected.logits, rtol=0, atol=1e-5 * largest)
    for at in (290, 100, 7):
        assert session.rewind(at) == at
        logits = session.fork().prefill(ids[at:], context_length=300)
        np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-5 * largest)
