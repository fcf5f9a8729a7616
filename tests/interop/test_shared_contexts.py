"""Contexts that begin alike are read once, and every session holds its own context."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakSet

import numpy as np
import pytest
from support.small_sessions import random_ids, small_model

from sala_export.interop.shared_contexts import Ids, read_contexts
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model("onnxruntime", tmp_path_factory.mktemp("shared"))


def ids(*parts: list[int]) -> Ids:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


EXAMPLES, OTHERS = random_ids(300, 1), random_ids(40, 2)
CONTEXTS = [
    ids(EXAMPLES, random_ids(50, 3)),
    ids(OTHERS),
    ids(EXAMPLES, random_ids(20, 4)),
    ids(EXAMPLES, random_ids(20, 4), random_ids(30, 5)),
    ids(OTHERS),
    ids([5]),
    ids(EXAMPLES, random_ids(50, 3)),
    ids(EXAMPLES, random_ids(20, 4), random_ids(3, 6)),
    ids(OTHERS[:10], [96, 4]),
]
"""Of a task with examples: whole, nested and equal ones, and some that part after less than a fork is worth."""
READ_ONCE = 300 + 50 + 20 + 30 + 3 + 40 + 1 + 12
"""Tokens of the contexts, without what they have in common in long stretches."""


def test_every_context_is_read_and_common_ones_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    prefill = Session.prefill

    def counted(session: Session, prompt: Ids, *, context_length: int) -> object:
        counts.append(len(prompt))
        return prefill(session, prompt, context_length=context_length)

    monkeypatch.setattr(Session, "prefill", counted)
    for at, context in read_contexts(CONTEXTS, lambda: model.session(max_context=900), model.dense_len):
        own = context.own()
        np.testing.assert_array_equal(own.tokens, CONTEXTS[at])
        prefill(own, np.asarray([7], np.int32))  # it may go on: nobody after it needs it
    assert sum(counts) == READ_ONCE


def test_contexts_share_their_beginning_with_those_that_attend_as_they_do(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[tuple[int, int]] = []
    prefill = Session.prefill

    def noted(session: Session, prompt: Ids, *, context_length: int) -> object:
        prompts.append((session.position, context_length))
        return prefill(session, prompt, context_length=context_length)

    monkeypatch.setattr(Session, "prefill", noted)
    common, dense_len = random_ids(200, 7), model.dense_len
    contexts = [ids(common, random_ids(count, count)) for count in (30, 56, 55, 130)]
    for at, context in read_contexts(contexts, model.session, dense_len):
        np.testing.assert_array_equal(context.session.tokens, contexts[at])
    # Each kind reads the 200 tokens once, and two texts go on from them.
    assert [position for position, _ in prompts] == [0, 200, 200] * 2
    assert [length >= dense_len for _, length in prompts] == [False] * 3 + [True] * 3


def test_sessions_that_wait_are_few(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each begins with the one before it, so all of them could wait for the next.
    words = random_ids(400)
    contexts = [ids(words[: 20 * count]) for count in range(1, 21)] * 2
    living: WeakSet[Session] = WeakSet()
    fork = Session.fork

    def noted(session: Session) -> Session:
        living.add(session)
        return session

    monkeypatch.setattr(Session, "fork", lambda session: noted(fork(session)))
    counts = []
    for at, context in read_contexts(contexts, lambda: noted(model.session()), model.dense_len):
        np.testing.assert_array_equal(context.session.tokens, contexts[at])
        counts.append(len(living))
    assert max(counts) == 7  # six that wait, and the one that has just been read
