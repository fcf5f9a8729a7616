"""Sessions that fork and go back: every one holds what it would hold if it had run its own steps alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.runtime_bundles import tiny_cpu_bundle
from support.small_sessions import (
    CHUNK_TOKENS,
    DENSE_LEN,
    MAX_CONTEXT,
    assert_same,
    assert_same_state,
    new_session,
    random_ids,
    small_model,
)

from sala_export.errors import RunError, SessionError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.torch_runtime.engine import TorchExecution

LONGEST_PROMPT = 200
PROBE = [5, 17, 42]


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model(request.param, tmp_path_factory.mktemp("forks"))


def greedy(session: Session, count: int) -> list[int]:
    return list(session.generate_tokens(max_new_tokens=count, stop_tokens=[]))


@dataclass(eq=False)
class Tracked:
    """A session, and what it ran: the ids of each call with the length of the context that it was part of."""

    session: Session
    steps: list[tuple[list[int], int]] = field(default_factory=list)
    pending: int | None = None
    knows_logits: bool = True
    """Whether the logits in front of the pending token are there. A saved state has none."""

    @property
    def ran(self) -> int:
        return sum(len(ids) for ids, _ in self.steps)

    @property
    def position(self) -> int:
        return self.ran + (self.pending is not None)

    def _run(self, ids: list[int]) -> None:
        waiting = [] if self.pending is None else [self.pending]
        self.steps.append(([*waiting, *ids], self.position + len(ids)))
        self.pending = None
        self.knows_logits = True

    def prefill(self, ids: list[int]) -> None:
        self.session.prefill(ids)
        self._run(ids)

    def generate(self, count: int, seed: int) -> None:
        options = {"temperature": 1.0, "seed": seed}
        for token in self.session.generate_tokens(max_new_tokens=count, stop_tokens=[], **options):  # type: ignore[arg-type]
            if self.pending is not None:
                self._run([])
            self.pending = token

    def fork(self) -> Tracked:
        return Tracked(self.session.fork(), list(self.steps), self.pending, self.knows_logits)

    def restore(self, model: Model, path: Path) -> None:
        self.session.save(path)
        self.session = model.restore(path, max_context=MAX_CONTEXT, chunk_tokens=CHUNK_TOKENS)
        self.knows_logits = self.pending is None
        assert self.session.checkpoints == ([self.ran] if self.ran and self.knows_logits else [])

    def rewind(self, position: int) -> None:
        if position == self.position:
            assert self.session.rewind(position) == position
            return
        kept = [at for at in self.session.checkpoints if at <= position]
        reached = self.ran if position == self.ran and self.knows_logits else max(kept, default=None)
        if reached is None:
            with pytest.raises(SessionError, match=f"no checkpoint at or before position {position}"):
                self.session.rewind(position)
            return
        assert self.session.rewind(position) == reached
        self.pending = None
        self.knows_logits = True
        while self.ran > reached:
            ids, context_length = self.steps.pop()
            if left := max(0, reached - self.ran):
                self.steps.append((ids[:left], context_length))

    def replayed(self, model: Model) -> Session:
        """A session of its own that ran these steps and no others."""
        session = new_session(model)
        for ids, context_length in self.steps:
            session.prefill(ids, context_length=context_length)
        if self.pending is not None:
            bias = {self.pending: 100.0}
            assert list(session.generate_tokens(max_new_tokens=1, stop_tokens=[], logit_bias=bias)) == [self.pending]
        return session

    def check(self, model: Model, folder: Path) -> None:
        checkpoints = self.session.checkpoints
        assert checkpoints == sorted(set(checkpoints))
        assert len(checkpoints) <= 8
        assert all(1 <= at <= self.ran for at in checkpoints)
        tokens = [token for ids, _ in self.steps for token in ids]
        assert self.session.tokens.tolist() == tokens + ([] if self.pending is None else [self.pending])
        if self.position == 0:
            assert self.session.logits is None
            return
        alone = self.replayed(model)
        assert_same(self.session.logits, alone.logits)
        assert_same_state(self.session, alone, folder)
        if self.position + len(PROBE) <= MAX_CONTEXT:
            assert_same(self.session.fork().prefill(PROBE), alone.prefill(PROBE))

    def keep_checkpoint(self) -> None:
        self.session.checkpoint()
        if self.ran and self.knows_logits:
            assert self.session.checkpoints[-1] == self.ran

    def do(self, operation: str, rng: np.random.Generator, model: Model, folder: Path) -> None:
        """Do one thing of a schedule, if there is room for it."""
        tokens = int(rng.integers(1, LONGEST_PROMPT + 1))
        if operation == "prefill" and self.position + tokens <= MAX_CONTEXT:
            self.prefill(rng.integers(3, 97, tokens).tolist())
        elif operation == "generate" and 0 < self.position <= MAX_CONTEXT - 5:
            self.generate(int(rng.integers(1, 6)), seed=int(rng.integers(1000)))
        elif operation == "rewind":
            self.rewind(self.position - int(rng.integers(0, self.position + 1) * rng.random()))
        elif operation == "checkpoint":
            self.keep_checkpoint()
        elif operation == "restore":
            self.restore(model, folder / "a.state")
        elif operation == "check":
            self.check(model, folder)
        assert self.session.position == self.position


OPERATIONS = {"prefill": 8, "generate": 4, "fork": 4, "rewind": 4, "checkpoint": 1, "restore": 1, "drop": 2, "check": 2}
"""What a schedule is made of, and how often."""


@pytest.mark.parametrize("seed", range(5))
def test_sessions_of_any_schedule_hold_what_their_own_steps_alone_give(model: Model, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = model.cache_bytes
    sessions = [Tracked(new_session(model))]
    chances = np.array(list(OPERATIONS.values())) / sum(OPERATIONS.values())
    sessions[0].prefill(random_ids(LONGEST_PROMPT, seed))
    longest = 0
    for _ in range(48):
        each = sessions[rng.integers(len(sessions))]
        operation = str(rng.choice(list(OPERATIONS), p=chances))
        if operation == "fork" and len(sessions) < 5:
            sessions.append(each.fork())
        elif operation == "drop" and len(sessions) > 1:
            sessions.remove(each)
        each.do(operation, rng, model, tmp_path)
        longest = max(longest, each.position)
    assert longest > DENSE_LEN, "contexts that were dense at first have become sparse"
    for each in sessions:
        each.check(model, tmp_path)
    del each, sessions
    assert model.cache_bytes == before


def test_every_checkpoint_of_a_long_prompt_can_be_gone_back_to(model: Model, tmp_path: Path) -> None:
    prompt = random_ids(700)
    parent = Tracked(new_session(model))
    parent.prefill(prompt)
    checkpoints = parent.session.checkpoints
    assert len(checkpoints) == 8
    assert checkpoints[-1] == len(prompt)
    for at in checkpoints[::3]:
        each = parent.fork()
        each.rewind(at)
        assert each.session.checkpoints == [kept for kept in checkpoints if kept <= at]
        each.prefill(random_ids(60, seed=at))
        each.check(model, tmp_path)
    parent.check(model, tmp_path)


def test_a_fork_takes_memory_only_for_what_it_adds(model: Model) -> None:
    before = model.cache_bytes
    parent = new_session(model)
    parent.prefill(random_ids(700))
    alone = model.cache_bytes - before
    forks = [parent.fork() for _ in range(4)]
    assert model.cache_bytes == before + alone
    for fork in forks:
        fork.prefill([7])
    grown = model.cache_bytes - before - alone
    assert 0 < grown < len(forks) * alone / 2
    del parent
    assert model.cache_bytes <= before + alone + grown
    del fork, forks
    assert model.cache_bytes == before


def test_a_fork_outlives_its_parent(model: Model, tmp_path: Path) -> None:
    parent = Tracked(new_session(model))
    parent.prefill(random_ids(300))
    parent.generate(3, seed=1)
    fork = parent.fork()
    parent.session.reset()
    parent.session.prefill(random_ids(500, seed=2))
    del parent
    fork.check(model, tmp_path)
    fork.prefill(random_ids(50, seed=3))
    fork.check(model, tmp_path)


def test_a_fork_has_the_options_and_checkpoints_of_its_parent(model: Model) -> None:
    parent = model.session(max_context=300, chunk_tokens=7, max_checkpoints=3)
    parent.prefill(random_ids(100))
    fork = parent.fork()
    assert (fork.max_context, fork.chunk_tokens) == (300, 7)
    assert fork.checkpoints == parent.checkpoints
    assert len(fork.checkpoints) == 3
    fork.rewind(fork.checkpoints[0])
    assert len(parent.checkpoints) == 3, "those of the parent stay"


def test_an_answer_is_drawn_again_with_its_own_penalties_after_a_rewind(model: Model) -> None:
    session = new_session(model)
    session.prefill(random_ids(40))
    end = session.position
    drawn = []
    for _ in range(2):
        options = {"max_new_tokens": 12, "presence_penalty": 2.0, "frequency_penalty": 2.0, "stop_tokens": []}
        drawn.append(list(session.generate_tokens(**options)))  # type: ignore[arg-type]
        assert session.rewind(end) == end
    assert drawn[0] == drawn[1]


def test_forks_in_threads_side_by_side_give_what_they_give_alone(model: Model, tmp_path: Path) -> None:
    parent = Tracked(new_session(model))
    parent.prefill(random_ids(280))
    forks = [parent.fork() for _ in range(4)]

    def work(each: Tracked, seed: int) -> None:
        each.prefill(random_ids(70 + seed, seed))
        each.generate(4, seed)
        each.rewind(each.position - 4)
        each.prefill(random_ids(20, 10 + seed))

    threads = [threading.Thread(target=work, args=(each, seed)) for seed, each in enumerate(forks, 1)]
    for thread in threads:
        thread.start()
    parent.prefill(random_ids(90, seed=9))
    for thread in threads:
        thread.join()
    for each in (parent, *forks):
        each.check(model, tmp_path)


def test_rewind_in_front_of_the_first_checkpoint_names_the_nearest_and_changes_nothing(model: Model) -> None:
    session = new_session(model)
    session.prefill(random_ids(100))
    tokens, logits, checkpoints = session.tokens, session.logits, session.checkpoints
    assert checkpoints == [48, 96, 100]
    for position in (0, 47):
        with pytest.raises(SessionError, match=f"at or before position {position}: the nearest is at 48"):
            session.rewind(position)
    np.testing.assert_array_equal(session.tokens, tokens)
    np.testing.assert_array_equal(session.logits, logits)  # type: ignore[arg-type]
    assert session.checkpoints == checkpoints
    assert session.rewind(95) == 48


@pytest.mark.parametrize("max_checkpoints", [0, 1])
def test_session_keeps_no_more_checkpoints_than_it_was_told(model: Model, max_checkpoints: int) -> None:
    session = model.session(max_context=300, chunk_tokens=10, max_checkpoints=max_checkpoints)
    session.prefill(random_ids(35))
    session.checkpoint()
    assert session.checkpoints == [35][:max_checkpoints]
    greedy(session, 1)
    assert session.rewind(35) == 35, "a token that has not run is taken back without one"
    with pytest.raises(SessionError, match="it keeps none" if max_checkpoints == 0 else "the nearest is at 35"):
        session.rewind(34)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (101, "position is 101, expected 0 to 100"),
        (-1, "position is -1, expected a whole number"),
        (2**40, "position is 1099511627776, expected"),
        (10**30, "position is "),
        (50.0, r"position is 50\.0, expected a whole number"),
        (True, "position is True, expected a whole number"),
        ("50", "position is '50', expected a whole number"),
        (None, "position is None, expected a whole number"),
    ],
)
def test_wrong_position_is_refused_and_changes_nothing(model: Model, position: object, message: str) -> None:
    session = new_session(model)
    session.prefill(random_ids(100))
    with pytest.raises(SessionError, match=message):
        session.rewind(position)  # type: ignore[arg-type]
    assert session.position == 100
    assert session.rewind(np.int32(100)) == 100  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"), [(-1, "max_checkpoints"), (1.5, "max_checkpoints"), (2**70, "max_check")]
)
def test_wrong_number_of_checkpoints_is_refused(model: Model, value: object, message: str) -> None:
    with pytest.raises(SessionError, match=message):
        model.session(max_checkpoints=value)  # type: ignore[arg-type]


def test_empty_session_forks_and_stays_where_it_is(model: Model) -> None:
    session = new_session(model)
    session.checkpoint()
    assert session.checkpoints == []
    assert session.rewind(0) == 0
    fork = session.fork()
    assert fork.position == 0
    assert_same(fork.prefill(random_ids(30)), session.prefill(random_ids(30)))


def test_poisoned_session_refuses_to_fork_rewind_and_keep_checkpoints(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.runtime != "torch":
        pytest.skip("only an engine in Python can be made to fail")
    session = new_session(model)
    session.prefill(random_ids(100))
    healthy = session.fork()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    with monkeypatch.context() as patch:
        patch.setattr(TorchExecution, "run", fail)
        with pytest.raises(RunError, match="by nothing"):
            session.prefill([7])
    for use in (session.fork, session.checkpoint, lambda: session.rewind(48)):
        with pytest.raises(RunError, match="reset it") as refused:
            use()
        assert refused.value.code == "SessionPoisoned"
    expected = new_session(model)
    expected.prefill(random_ids(100))
    assert_same(healthy.prefill([7]), expected.prefill([7]))
    session.reset()
    assert session.checkpoints == []
    assert_same(session.prefill([7]), new_session(model).prefill([7]))


def test_session_at_work_refuses_forks_and_rewinds_of_other_threads(model: Model) -> None:
    session = new_session(model)
    uses: list[Callable[[], object]] = [
        session.fork,
        session.checkpoint,
        lambda: session.rewind(0),
        lambda: session.checkpoints,
    ]
    refusals: list[str] = []

    def use_all() -> None:
        for use in uses:
            with pytest.raises(SessionError) as refused:
                use()
            refusals.append(str(refused.value))

    def from_another_thread(_: object) -> None:
        thread = threading.Thread(target=use_all)
        thread.start()
        thread.join()

    session.prefill(random_ids(40), on_progress=from_another_thread)
    assert len(refusals) == len(uses)
    assert all("already at work" in refusal for refusal in refusals)
    assert session.position == 40
    assert session.fork().position == 40


AFTER_A_FORK_OF_THE_PROCESS = """
import os, sys
import sala_export
from sala_export.errors import RunError

ids = list(range(3, 100))
model = sala_export.load(sys.argv[1], threads=1)
session, other, lost = (model.session(max_context=256, chunk_tokens=16) for _ in range(3))
for each in (session, other, lost):
    each.prefill(ids)
child = os.fork()
if child == 0:
    uses = (
        session.fork,
        model.session,
        lambda: session.save(sys.argv[2]),
        lambda: session.prefill([7]),
        lambda: other.rewind(50),
        lambda: lost.reset(),
    )
    refused = 0
    for use in uses:
        try:
            use()
        except RunError as error:
            refused += "load the model after the fork" in str(error)
    del session, other, lost, each, model
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
fork = session.fork()
assert session.rewind(96) == other.rewind(96) == 96
alone = model.session(max_context=256, chunk_tokens=16)
alone.prefill(ids[:96], context_length=len(ids))
expected = alone.prefill([7])
for each in (session, other):
    assert abs(each.prefill([7]) - expected).max() <= 1e-5 * abs(expected).max()
assert fork.position == lost.position == len(ids)
"""


def test_child_process_is_told_to_load_the_model_after_the_fork_and_the_parent_goes_on(tmp_path: Path) -> None:
    arguments = [str(tiny_cpu_bundle()), str(tmp_path / "child.state")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AFTER_A_FORK_OF_THE_PROCESS, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
