"""Answers with drafts are those without, token for token, and cost fewer steps where they repeat something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.closeness import assert_close
from support.cyclic_text import CyclicTokenizer
from support.passkey import needle_positions, passkey_config, passkey_prompt, write_passkey_checkpoint
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.errors import SalaError, SessionError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

DENSE_LEN = 512
"""Length from which both models attend sparsely."""
LENGTHS = [
    pytest.param(60, id="dense"),
    pytest.param(DENSE_LEN - 30, id="turns sparse"),
    pytest.param(DENSE_LEN + 100, id="sparse"),
]
FEW = dict.fromkeys((40, 41, 42), 100.0)
"""A bias that leaves three tokens, so that every three of them soon come again, and not always with the same next."""
TOLERANCE = 1e-5
"""For logits behind two answers whose steps had different numbers of rows."""


class Cycle:
    """A constraint by which token n of an answer is the n-th of a list that repeats. None stands for every token."""

    def __init__(self, tokens: Sequence[int | None]) -> None:
        self.tokens = tokens
        self.taken = 0

    def allowed(self) -> NDArray[np.uint32] | None:
        token = self.tokens[self.taken % len(self.tokens)]
        if token is None:
            return None
        words = np.zeros(token // 32 + 1, np.uint32)
        words[token // 32] = 1 << token % 32
        return words

    def take(self, token_id: int) -> None:
        self.taken += 1


@pytest.fixture(scope="module")
def passkey_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("speculation")
    config = passkey_config(num_attention_heads=4, dense_len=DENSE_LEN)
    checkpoint = write_passkey_checkpoint(folder / "checkpoint", config)
    return sala_export.load(write_cpu_bundle(checkpoint, folder / "passkey.sala"), threads=2)


def new_session(model: Model, length: int, seed: int = 0) -> Session:
    session = model.session(max_context=2048)
    session.prefill(np.random.default_rng(seed).integers(34, 128, length))
    return session


def tokens_of(session: Session, count: int, **options: Any) -> list[int]:
    return list(session.generate_tokens(max_new_tokens=count, **{"stop_tokens": [], **options}))


def assert_same_next(actual: Session, expected: Session) -> None:
    """The context, and the logits behind it, for which the last token runs first."""
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    assert_close(torch.from_numpy(actual.prefill([5])), torch.from_numpy(expected.prefill([5])), TOLERANCE)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"speculation": 8}, id="greedy"),
        pytest.param({"speculation": 8, "logit_bias": FEW}, id="greedy of three"),
        pytest.param({"speculation": 64, "logit_bias": FEW, "temperature": 3.0, "top_p": 0.99, "seed": 7}, id="drawn"),
        pytest.param(
            {
                "speculation": 1,
                "logit_bias": FEW,
                "temperature": 3.0,
                "repetition_penalty": 1.1,
                "frequency_penalty": 0.1,
                "presence_penalty": 0.5,
            },
            id="penalties",
        ),
    ],
)
def test_answer_is_the_one_without(model: Model, length: int, options: dict[str, Any]) -> None:
    session = new_session(model, length)
    same = session.fork()
    found = tokens_of(session, 60, **options)
    assert found == tokens_of(same, 60, **{**options, "speculation": None})
    counts = session.speculation
    assert counts is not None
    assert counts.tokens == 60
    if "logit_bias" in options:
        assert counts.accepted > 0
    if "temperature" in options:
        assert counts.drafted > counts.accepted
    assert_same_next(session, same)


@pytest.mark.parametrize("length", LENGTHS)
def test_needles_are_found_in_steps_with_drafts(passkey_model: Model, length: int) -> None:
    prompt, needles = passkey_prompt(length, needle_positions(length))
    quiz: list[int | None] = []
    for needle in needles:
        quiz += [*needle.question().tolist(), None]
    session = passkey_model.session(max_context=2048)
    session.prefill(prompt)
    found = tokens_of(session, 8 * len(quiz), constraint=Cycle(quiz), speculation=16)
    assert found[2::3] == [needle.value for needle in needles] * 8
    counts = session.speculation
    assert counts is not None
    assert counts.tokens_per_step > 2
    assert counts.tokens_per_step == counts.tokens / (counts.tokens - counts.accepted)


def test_logprobs_are_those_without(model: Model) -> None:
    session = new_session(model, 70)
    same = session.fork()
    options: dict[str, Any] = {"max_new_tokens": 60, "stop_tokens": [], "logit_bias": FEW, "logprobs": 3}
    ours, theirs = session.generate_tokens(**options, speculation=8), same.generate_tokens(**options)
    for token, expected in zip(ours, theirs, strict=True):
        assert token == expected
        (found,), (wanted,) = session.logprobs, same.logprobs
        assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)
        assert [each for each, _ in found.top] == [each for each, _ in wanted.top]


@pytest.mark.parametrize("taken", [1, 21])
def test_answer_goes_on_from_any_place(model: Model, taken: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"logit_bias": FEW, "temperature": 3.0, "seed": 3}
    session = new_session(model, DENSE_LEN - 25)
    same = session.fork()
    expected = tokens_of(same, 35, **options)
    answer = session.generate_tokens(max_new_tokens=35, stop_tokens=[], **options, speculation=8)
    assert [next(answer) for _ in range(taken)] == expected[:taken]
    fork = session.fork()
    session.save(tmp_path / "middle.state")
    restored = model.restore(tmp_path / "middle.state", max_context=2048)
    rewound = session.fork()
    rewound.rewind(rewound.position - 1)
    assert list(answer) == expected[taken:]
    assert tokens_of(fork, 35 - taken, **options) == expected[taken:]
    assert tokens_of(restored, 35 - taken, **options, speculation=8) == expected[taken:]
    assert tokens_of(rewound, 36 - taken, **options, speculation=8) == expected[taken - 1 :]
    for each in (fork, restored, rewound):
        assert_same_next(each, same.fork())
    assert_same_next(session, same)


def test_rewind_forgets_what_was_drafted_from(model: Model) -> None:
    session = new_session(model, DENSE_LEN - 20)
    fresh = session.fork()
    end = session.position
    tokens_of(session, 50, constraint=Cycle([50, 51, 52, 53]), speculation=8)
    assert session.rewind(end) == end
    options: dict[str, Any] = {"logit_bias": FEW}
    assert tokens_of(session, 50, **options, speculation=8) == tokens_of(fresh, 50, **options)
    assert_same_next(session, fresh)


def test_drafted_stop_token_ends_the_answer(model: Model) -> None:
    session, same = (model.session(max_context=2048) for _ in range(2))
    for each in (session, same):
        each.prefill([*range(50, 60), 70, 50, 51, 52])
    options: dict[str, Any] = {"stop_tokens": [55], "constraint": Cycle(range(53, 60))}
    assert tokens_of(session, 20, **options, speculation=4) == [53, 54]
    assert session.finish_reason == "stop_token"
    counts = session.speculation
    assert counts is not None
    # The first is drawn from the prompt. The step that runs it has 4 drafts, and the stop token is the second.
    assert (counts.tokens, counts.drafted, counts.accepted) == (3, 4, 1)
    assert tokens_of(same, 20, **{**options, "constraint": Cycle(range(53, 60))}) == [53, 54]
    assert_same_next(session, same)


def test_stop_string_ends_the_text(model: Model) -> None:
    worded = Model(model._native, CyclicTokenizer())
    session = new_session(worded, 50)
    same = session.fork()
    options: dict[str, Any] = {"max_new_tokens": 60, "stop_tokens": [], "stop_strings": "<end>", "logit_bias": FEW}
    text = "".join(session.generate(**options, speculation=8))
    assert text == "".join(same.generate(**options)) == "Grüße, 世界! One two "
    assert session.finish_reason == "stop_string"
    assert_same_next(session, same)


def test_answers_of_a_scheduler_beside_others(model: Model) -> None:
    lengths = (40, DENSE_LEN - 20, 90, 64)
    ways: list[Mapping[str, Any]] = [{"logit_bias": FEW}, {"temperature": 0.9}, {"logit_bias": FEW, "temperature": 3.0}]
    sessions = [new_session(model, length, seed=place) for place, length in enumerate(lengths)]
    expected = [session.fork() for session in sessions]
    with model.scheduler() as scheduler:
        answers: list[Iterator[int]] = [
            scheduler.submit_tokens(
                session,
                [45, 46],
                max_new_tokens=30,
                stop_tokens=[],
                speculation=None if place == 3 else 8,
                **ways[place % 3],
            )
            for place, session in enumerate(sessions)
        ]
        found = [list(answer) for answer in answers]
    for place, same in enumerate(expected):
        same.prefill([45, 46])
        assert found[place] == tokens_of(same, 30, **ways[place % 3])
        assert sessions[place].speculation is None
        assert_same_next(sessions[place], same)


def test_counts_are_of_the_last_generation(model: Model) -> None:
    session = new_session(model, 40)
    assert session.speculation is None
    tokens_of(session, 30, constraint=Cycle([60, 61, 62]), speculation=4)
    counts = session.speculation
    assert counts is not None
    assert counts.tokens == 30
    assert counts.accepted > 15
    tokens_of(session, 7)
    counts = session.speculation
    assert counts is not None
    assert (counts.tokens, counts.drafted, counts.accepted, counts.tokens_per_step) == (7, 0, 0, 1.0)


@pytest.mark.parametrize("wrong", [0, 65, -1, 1.5, "8", True])
def test_wrong_number_is_refused(model: Model, wrong: object) -> None:
    session = new_session(model, 10)
    with pytest.raises(SessionError, match=r"^speculation is .*, expected a whole number from 1 to 64$"):
        tokens_of(session, 5, speculation=wrong)
    assert len(tokens_of(session, 5, speculation=64)) == 5


def test_batch_is_refused(model: Model) -> None:
    sessions = [new_session(model, 10), new_session(model, 12)]
    with pytest.raises(SalaError, match="speculation"):
        next(model.generate_batch_tokens(sessions, max_new_tokens=4, speculation=4))
    assert [len(tokens_of(session, 3)) for session in sessions] == [3, 3]
