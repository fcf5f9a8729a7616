"""Answers that are drawn together are those that each session draws alone, whatever the others hold."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.closeness import assert_close
from support.small_sessions import DENSE_LEN, MAX_CONTEXT, assert_same_state, new_session, random_ids, small_model

from sala_export.errors import RunError, SessionError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.torch_runtime.engine import TorchExecution

STATE_BYTES = 2 * 4 * 128 * 128 * 4
"""Of two Lightning layers of four heads."""
LENGTHS = (1, 31, 200, 300, 64, 255, 257, 511)
"""Of prompts, on both sides of `DENSE_LEN`, and where a compressed key or a page begins."""


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model(request.param, tmp_path_factory.mktemp("batches"))


def prefilled(model: Model, lengths: Sequence[int], seed: int = 0) -> list[Session]:
    sessions = []
    for place, length in enumerate(lengths):
        sessions.append(new_session(model))
        sessions[-1].prefill(random_ids(length, seed + place))
    return sessions


def forks(sessions: Sequence[Session]) -> list[Session]:
    return [session.fork() for session in sessions]


def alone(session: Session, count: int, **options: object) -> list[int]:
    return list(session.generate_tokens(max_new_tokens=count, stop_tokens=[], **options))  # type: ignore[misc]


def together(model: Model, sessions: Sequence[Session], count: int) -> list[list[int]]:
    steps = list(model.generate_batch_tokens(sessions, max_new_tokens=count, stop_tokens=[]))
    return [[step[place] for step in steps if step[place] is not None] for place in range(len(sessions))]  # type: ignore[misc]


def assert_same_next(actual: Sequence[Session], expected: Sequence[Session]) -> None:
    """The logits behind an answer, for which its last token runs first."""
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        assert_close(torch.from_numpy(ours.prefill([5])), torch.from_numpy(theirs.prefill([5])), 1e-5)


@pytest.mark.parametrize("count", range(1, 9))
def test_batches_of_any_size_give_what_each_session_gives_alone(model: Model, count: int, tmp_path: Path) -> None:
    sessions = prefilled(model, LENGTHS[:count], seed=count)
    expected = forks(sessions)
    assert together(model, sessions, 6) == [alone(each, 6) for each in expected]
    assert [session.finish_reason for session in sessions] == ["max_new_tokens"] * count
    # The last token has not run; the next turn is of each session alone.
    assert_same_next(sessions, expected)
    for ours, theirs in zip(sessions, expected, strict=True):
        assert_same_state(ours, theirs, tmp_path)


def test_context_turns_sparse_in_the_middle_of_an_answer(model: Model) -> None:
    sessions = prefilled(model, (DENSE_LEN - 3, 40, DENSE_LEN - 8), seed=20)
    expected = forks(sessions)
    assert together(model, sessions, 12) == [alone(each, 12) for each in expected]
    assert_same_next(sessions, expected)


def test_sessions_leave_at_any_step_and_others_go_on(model: Model) -> None:
    sessions = prefilled(model, LENGTHS[:5], seed=30)
    limits = (3, 9, 1, 9, 6)
    expected = forks(sessions)
    answers = [alone(each, count) for each, count in zip(expected, limits, strict=True)]
    stops = [answer[-1] for answer in answers]
    found: list[list[int]] = [[] for _ in sessions]
    # A stop token ends an answer where it comes up first.
    for step in model.generate_batch_tokens(sessions, max_new_tokens=20, stop_tokens=stops):
        for place, token in enumerate(step):
            found[place] += [] if token is None else [token]
    again = [
        list(each.generate_tokens(max_new_tokens=20, stop_tokens=stops))
        for each in forks(prefilled(model, LENGTHS[:5], seed=30))
    ]
    assert found == again
    assert {session.finish_reason for session in sessions} <= {"stop_token", "max_new_tokens"}


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules_with_prompts_between_steps(model: Model, seed: int) -> None:
    random = np.random.default_rng(seed)
    sessions = prefilled(model, random.choice(LENGTHS, 6).tolist(), seed=100 * seed)
    expected = forks(sessions)
    for _ in range(4):
        chosen = random.permutation(6)[: random.integers(1, 6)].tolist()
        others = [place for place in range(6) if place not in chosen]
        steps = int(random.integers(1, 7))
        found: list[list[int]] = [[] for _ in chosen]
        batch = model.generate_batch_tokens([sessions[place] for place in chosen], max_new_tokens=20, stop_tokens=[])
        for _ in range(steps):
            for place, token in enumerate(next(batch)):
                assert token is not None
                found[place].append(token)
            if others:
                place, prompt = int(random.choice(others)), random_ids(int(random.integers(1, 60)), seed)
                assert_close(
                    torch.from_numpy(sessions[place].prefill(prompt)),
                    torch.from_numpy(expected[place].prefill(prompt)),
                    1e-5,
                )
        del batch
        assert found == [alone(expected[place], steps) for place in chosen]
    assert_same_next(sessions, expected)


def test_forks_draw_with_seeds_of_their_own_and_share_their_memory_with_the_book(model: Model) -> None:
    (book,) = prefilled(model, (400,), seed=50)
    drawn = {"max_new_tokens": 8, "stop_tokens": [], "temperature": 1.5}
    before = model.cache_bytes
    each = forks([book] * 4)
    expected = [list(fork.generate_tokens(seed=7 + place, **drawn)) for place, fork in enumerate(each)]
    grown = model.cache_bytes - before
    del each
    assert model.cache_bytes == before
    sessions = forks([book] * 4)
    batch = model.generate_batch_tokens(sessions, seed=7, **drawn)
    found = np.array([next(batch) for _ in range(8)], dtype=np.int64).T.tolist()
    assert model.cache_bytes - before <= grown + 4 * STATE_BYTES, "beside what forks take alone, a copy of each state"
    assert found == expected
    assert len(set(map(tuple, found))) > 1


def test_batch_keeps_no_session_alive_and_reads_options_once(model: Model) -> None:
    sessions = prefilled(model, (20, 20, 20), seed=80)
    stops = [alone(session.fork(), 3)[-1] for session in sessions]
    limits = {"max_new_tokens": 20, "temperature": 1.5}
    once = [*model.generate_batch_tokens(forks(sessions), seed=np.int64(7), stop_tokens=iter(stops), **limits)]
    again = [*model.generate_batch_tokens(forks(sessions), seed=7, stop_tokens=stops, **limits)]
    assert once == again
    with pytest.raises(SessionError, match="seed is -1"):
        model.generate_batch_tokens(sessions, seed=-1)
    gone = weakref.ref(sessions[0])
    gc.disable()
    try:
        list(model.generate_batch_tokens(sessions, max_new_tokens=2))
        del sessions
        assert gone() is None
    finally:
        gc.enable()


def test_wrong_batches_are_refused_and_leave_sessions_as_they_were(model: Model) -> None:
    a, b = prefilled(model, (20, 30), seed=60)
    other = model.session(max_context=MAX_CONTEXT * 9)
    other.prefill([5, 6])
    empty = new_session(model)
    for sessions, reason in (
        ([], "has no sessions"),
        ([a, a], "already at work"),
        ([a, empty], "context is empty"),
        ([a, b, other], r"max_context 8100, the first one 900.*the same"),
        (forks([a] * 65), "has 65 sessions.* at most 64"),
    ):
        with pytest.raises(SessionError, match=reason):
            model.generate_batch_tokens(sessions)
    with pytest.raises(SessionError, match="temperature"):
        model.generate_batch_tokens([a, b], temperature=-1)
    expected = forks([a, b])
    batch = model.generate_batch_tokens([a, b], max_new_tokens=3, stop_tokens=[])
    next(batch)
    for use in (lambda: a.prefill([5]), lambda: b.fork(), lambda: a.rewind(3), lambda: b.reset()):
        with pytest.raises(SessionError, match="already at work"):
            use()
    rest = list(batch)
    assert len(rest) == 3, "two tokens, and the step that finds the end"
    assert rest[-1] == [None, None]
    for each in expected:
        alone(each, 3)
    assert_same_next([a, b], expected)


def test_step_that_fails_loses_the_sessions_of_the_batch_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in small_model("torch", tmp_path):
        a, b, other = prefilled(model, (20, 30, 40), seed=70)
        run = TorchExecution.run

        def fail(self: TorchExecution, inputs: dict[str, np.ndarray], logits: np.ndarray) -> None:
            if len(logits) == 2:
                raise MemoryError("no room for this step")
            run(self, inputs, logits)  # noqa: B023

        monkeypatch.setattr(TorchExecution, "run", fail)
        batch = model.generate_batch_tokens([a, b], max_new_tokens=5, stop_tokens=[])
        next(batch)
        with pytest.raises(RunError, match="no room for this step"):
            next(batch)
        for lost in (a, b):
            with pytest.raises(RunError, match="its context is lost"):
                lost.prefill([5])
            lost.reset()
            lost.prefill([5])
        assert alone(other, 2)
