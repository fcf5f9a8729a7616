"""Requests that run side by side give what each session gives alone, and what one does concerns no other."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.closeness import assert_close
from support.cyclic_text import TEXT, CyclicTokenizer
from support.small_sessions import DENSE_LEN, MAX_CONTEXT, new_session, random_ids, small_model

from sala_export.errors import RequestError, RunError, SessionError, UnsupportedError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.torch_runtime.engine import TorchExecution


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model(request.param, tmp_path_factory.mktemp("scheduler"))


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model("torch", tmp_path_factory.mktemp("torch"))


def assert_same_next(actual: Session, expected: Session) -> None:
    """The context, and the logits behind it, for which the last token runs first."""
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    assert_close(torch.from_numpy(actual.prefill([5])), torch.from_numpy(expected.prefill([5])), 1e-5)


def alone(session: Session, prompt: Sequence[int], count: int, seed: int) -> list[int]:
    if prompt:
        session.prefill(prompt)
    return list(session.generate_tokens(max_new_tokens=count, stop_tokens=[], temperature=0.9, seed=seed))


@pytest.mark.parametrize("seed", range(4))
def test_requests_give_what_each_session_gives_alone(model: Model, seed: int) -> None:
    random = np.random.default_rng(seed)
    sessions, expected = [new_session(model) for _ in range(9)], [new_session(model) for _ in range(9)]
    # One takes steps of its own.
    sessions[4] = model.session(max_context=MAX_CONTEXT * 9, chunk_tokens=33)
    with model.scheduler(
        max_running=int(random.integers(1, 9)), prefill_share=float(random.uniform(0.1, 0.9))
    ) as scheduler:
        for turn in range(3):
            lengths = random.integers(turn == 0, DENSE_LEN, 9).tolist()
            counts = random.integers(0, 9, 9).tolist()
            prompts = [random_ids(length, seed + length) for length in lengths]
            answers = [
                scheduler.submit_tokens(
                    session,
                    prompt,
                    priority=int(random.integers(3)),
                    max_new_tokens=count,
                    stop_tokens=[],
                    temperature=0.9,
                    seed=turn,
                )
                for session, prompt, count in zip(sessions, prompts, counts, strict=True)
            ]
            for place, answer in enumerate(answers):
                assert [*answer] == alone(expected[place], prompts[place], counts[place], turn)
                assert sessions[place].finish_reason == answer.finish_reason == "max_new_tokens"
                assert answer.progress.stage == "ended"
                assert answer.progress.prompt_tokens_done == answer.progress.prompt_tokens == lengths[place]
                assert answer.progress.new_tokens == counts[place]
    for ours, theirs in zip(sessions, expected, strict=True):
        assert_same_next(ours, theirs)


def test_forks_of_one_book_are_asked_at_the_same_time(model: Model) -> None:
    book = new_session(model)
    book.prefill(random_ids(DENSE_LEN + 40))
    questions = [random_ids(7, seed) for seed in range(5)]
    expected = [alone(book.fork(), question, 6, 0) for question in questions]
    with model.scheduler() as scheduler:
        answers = [
            scheduler.submit_tokens(book.fork(), iter(question), max_new_tokens=6, stop_tokens=[], temperature=0.9)
            for question in questions
        ]
        assert [[*answer] for answer in answers] == expected


@pytest.mark.parametrize("top", [0, 3])
def test_prompts_are_scored_as_a_session_scores_them(model: Model, top: int) -> None:
    lengths = [1, 40, DENSE_LEN + 3]
    with model.scheduler() as scheduler:
        sessions = [new_session(model) for _ in lengths]
        for turn in range(2):  # the second prompt goes on behind a token that was drawn
            prompts = [random_ids(length, turn) for length in lengths]
            expected = [session.fork().score(ids, top=top) for session, ids in zip(sessions, prompts, strict=True)]
            answers = [
                scheduler.submit_tokens(session, ids, prompt_logprobs=top, max_new_tokens=2, stop_tokens=[])
                for session, ids in zip(sessions, prompts, strict=True)
            ]
            for answer, wanted in zip(answers, expected, strict=True):
                assert len([*answer]) == 2
                scores = answer.prompt_scores
                assert scores is not None
                np.testing.assert_array_equal(scores.token_ids, wanted.token_ids)
                np.testing.assert_allclose(scores.logprobs, wanted.logprobs, atol=1e-4)
                np.testing.assert_allclose(scores.top_logprobs, wanted.top_logprobs, atol=1e-4)
                assert scores.top_ids.shape == wanted.top_ids.shape == (len(wanted.token_ids), top)
        plain = scheduler.submit_tokens(sessions[0], [1, 2], max_new_tokens=0)
        assert ([*plain], plain.prompt_scores) == ([], None)


def test_text_ends_before_a_stop_string_and_the_context_behind_its_token(model: Model) -> None:
    reader = Model(model._native, CyclicTokenizer())
    for strings in (None, "<end>", ["world", "two <"], "three\nf"):
        options = {"max_new_tokens": 20, "stop_tokens": [], "stop_strings": strings}
        sessions = [new_session(reader) for _ in range(3)]
        expected = new_session(reader)
        expected.prefill([5, 6, 7])
        text = "".join(expected.generate(**options))
        assert TEXT.startswith(text) or strings is None
        with reader.scheduler() as scheduler:
            answers = [scheduler.submit(session, [5, 6, 7], **options) for session in sessions]
            for answer, session in zip(answers, sessions, strict=True):
                assert "".join(answer) == text
                assert answer.finish_reason == session.finish_reason == expected.finish_reason
        ids = list(reader.scheduler().submit_tokens(new_session(reader), [5, 6, 7], **options))
        assert ids == expected.tokens[3:].tolist()
        for session in sessions:
            np.testing.assert_array_equal(session.tokens, expected.tokens)
    with pytest.raises(UnsupportedError, match="no tokenizer"):
        model.scheduler().submit(new_session(model), [5])


def test_session_is_at_work_until_its_answer_has_ended(model: Model) -> None:
    session = new_session(model)
    with model.scheduler() as scheduler:
        answer = scheduler.submit_tokens(session, [5, 6], max_new_tokens=400, stop_tokens=[])
        assert next(answer) >= 0
        for use in (
            lambda: session.prefill([5]),
            session.fork,
            session.reset,
            lambda: scheduler.submit_tokens(session),
        ):
            with pytest.raises(SessionError, match="already at work"):
                use()
        assert answer.finish_reason is None
        answer.close()
        drawn = session.tokens[2:].tolist()
        session.prefill([5])
        assert answer.finish_reason == session.finish_reason == "cancelled"
        assert [*answer] == drawn[1:], "what was drawn before is still there"
        with scheduler.submit_tokens(session, [7], max_new_tokens=400) as left:
            assert left.wait(60)
        session.prefill([8])
        gone = scheduler.submit_tokens(session, [7], max_new_tokens=400)
        del gone
        session.prefill([8])


def test_requests_wait_and_are_refused_or_end_when_too_many_do(model: Model) -> None:
    with model.scheduler(max_running=1, max_waiting=1) as scheduler:
        first = scheduler.submit_tokens(new_session(model), [5], max_new_tokens=800, stop_tokens=[])
        next(first)
        late = scheduler.submit_tokens(new_session(model), [5], max_new_tokens=1, max_wait=0.001)
        assert late.progress.stage in ("waiting", "ended")
        with pytest.raises(RunError, match=r"has waited for longer than max_wait, 0\.001 s") as ended:
            list(late)
        assert ended.value.code == "Busy"
        waiting = scheduler.submit_tokens(new_session(model), [5], max_new_tokens=1)
        with pytest.raises(RunError, match="1 requests run and 1 wait") as refused:
            scheduler.submit_tokens(new_session(model), [5])
        assert refused.value.code == "Busy"
        first.cancel()
        assert len([*waiting]) == 1


def test_request_for_which_there_is_no_memory_says_so(model: Model) -> None:
    gc.collect()  # a session of another test that goes meanwhile would leave room
    session = new_session(model)
    with model.scheduler(max_cache_bytes=model.cache_bytes + 1000) as scheduler:
        answer = scheduler.submit_tokens(session, [5] * 300)
        with pytest.raises(RunError, match="bytes of caches, and 1000 are left of max_cache_bytes"):
            list(answer)
    session.prefill([5])


def test_error_of_the_engine_comes_out_of_the_answers_that_it_concerns(
    torch_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TorchExecution.run

    def fail(self: TorchExecution, inputs: dict[str, np.ndarray], logits: np.ndarray) -> None:
        if inputs["input_ids"].shape[1] == 3:
            raise ZeroDivisionError("of the engine")
        run(self, inputs, logits)

    monkeypatch.setattr(TorchExecution, "run", fail)
    failing, fine = new_session(torch_model), new_session(torch_model)
    with torch_model.scheduler() as scheduler:
        failed = scheduler.submit_tokens(failing, [5, 6, 7])
        answer = scheduler.submit_tokens(fine, [5, 6], max_new_tokens=3, stop_tokens=[])
        with pytest.raises(RunError, match="ZeroDivisionError: of the engine") as raised:
            list(failed)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert len([*answer]) == 3
        with pytest.raises(RunError, match="its context is lost"):
            scheduler.submit_tokens(failing, [5])


def test_error_of_the_tokenizer_comes_out_of_its_answer(torch_model: Model) -> None:
    class Broken(CyclicTokenizer):
        class Decoder(CyclicTokenizer.Decoder):
            def push(self, token_id: int) -> str:
                raise LookupError("of the tokenizer")

    reader = Model(torch_model._native, Broken())
    session = new_session(reader)
    with reader.scheduler() as scheduler:
        answer = scheduler.submit(session, [5, 6], max_new_tokens=3, stop_strings="x")
        with pytest.raises(LookupError, match="of the tokenizer"):
            list(answer)
        assert list(answer) == []
    assert session.position == 3
    assert answer.finish_reason is session.finish_reason is None


def test_wrong_options_are_refused(model: Model) -> None:
    for name, value in (
        ("max_running", 0),
        ("max_running", 65),
        ("max_waiting", -1),
        ("max_waiting", 1.5),
        ("max_cache_bytes", 0),
        ("prefill_share", 0),
        ("prefill_share", "half"),
    ):
        with pytest.raises(SessionError, match=name):
            model.scheduler(**{name: value})
    with pytest.raises(RequestError, match="not a size"):
        model.scheduler(max_cache_bytes="many")
    with model.scheduler(max_cache_bytes="2G") as scheduler:
        session = new_session(model)
        for name, value in (
            ("priority", 2**31),
            ("priority", "high"),
            ("max_wait", -1.0),
            ("temperature", -1),
            ("prompt_logprobs", 21),
        ):
            with pytest.raises(SessionError, match=name):
                scheduler.submit_tokens(session, [5], **{name: value})
        with pytest.raises(SessionError, match="session is None, expected a session of this model"):
            scheduler.submit_tokens(None, [5])  # type: ignore[arg-type]
        with scheduler.submit_tokens(session, [5]) as answer, pytest.raises(SessionError, match="seconds is nan"):
            answer.wait(float("nan"))
        session.reset()
        for prompt, reason in (([], "no tokens"), ([5] * (MAX_CONTEXT + 1), "needs a context"), ([-1], "token 0")):
            with pytest.raises(SessionError, match=reason):
                scheduler.submit_tokens(session, prompt)
        session.prefill([5])
    with pytest.raises(SessionError, match="scheduler is closed"):
        scheduler.submit_tokens(session, [5])


def test_one_thread_takes_from_an_answer(torch_model: Model) -> None:
    reader = Model(torch_model._native, CyclicTokenizer())
    with reader.scheduler() as scheduler:
        # Its thread takes each token in Python, and must not wait for a thread that waits for it.
        answer = scheduler.submit_tokens(new_session(reader), [5], max_new_tokens=300, stop_tokens=[], stop_strings="§")
        found: list[int] = []
        refused: list[str] = []

        def take() -> None:
            try:
                found.extend(answer)
            except SessionError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        found.extend(answer)
        assert len(found) == 300
        assert all("use one thread" in each for each in refused)


@pytest.mark.parametrize("is_scheduler", [True, False])
def test_garbage_may_be_collected_in_the_thread_of_the_scheduler(is_scheduler: bool, torch_model: Model) -> None:
    class Collecting(CyclicTokenizer):
        class Decoder(CyclicTokenizer.Decoder):
            def push(self, token_id: int) -> str:
                gc.collect()
                return super().push(token_id)

    reader = Model(torch_model._native, Collecting())
    session, other = new_session(reader), new_session(reader)
    scheduler = reader.scheduler()
    gc.disable()
    try:
        cycle: list[object] = [scheduler.submit_tokens(other, [5], max_new_tokens=800, stop_tokens=[])]
        answer = scheduler.submit_tokens(session, [5], max_new_tokens=8, stop_tokens=[], stop_strings="§")
        if is_scheduler:
            answer._scheduler = None  # type: ignore[assignment]
            cycle.append(scheduler)
        cycle.append(cycle)
        del cycle, scheduler
        taken = list(answer)
    finally:
        gc.enable()
    assert answer.finish_reason == ("cancelled" if is_scheduler else "max_new_tokens")
    assert len(taken) < 8 if is_scheduler else len(taken) == 8
    answer.close()
    for each in (session, other):
        each.prefill([5])


def test_answer_keeps_its_scheduler_and_neither_keeps_a_session(model: Model) -> None:
    session = new_session(model)
    scheduler = model.scheduler()
    answer = scheduler.submit_tokens(session, [5], max_new_tokens=5, stop_tokens=[])
    gone = weakref.ref(scheduler), weakref.ref(session)
    gc.disable()
    try:
        del scheduler
        assert len(list(answer)) == 5
        assert answer.finish_reason == "max_new_tokens"
        del session, answer
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_child_process_lets_go_of_a_scheduler(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.small_sessions import new_session, small_model
for model in small_model("onnxruntime", Path(sys.argv[2])):
    scheduler = model.scheduler()
    answer = scheduler.submit_tokens(new_session(model), [5], max_new_tokens=2, stop_tokens=[])
    list(answer)
    time.sleep(0.1)  # until its thread waits for requests
    child = os.fork()
    if child == 0:
        scheduler.close()
        del answer, scheduler
        os._exit(3)  # ONNX Runtime would wait for threads that are not here
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    break
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parent.parent, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (0, "3\n"), ended.stderr


@pytest.mark.parametrize("is_open", [True, False])
def test_program_ends_while_requests_run(is_open: bool, tmp_path: Path) -> None:
    """Whether its scheduler is still there or not, and the engine is in Python."""
    program = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.small_sessions import new_session, small_model
for model in small_model("torch", Path(sys.argv[2])):
    scheduler = model.scheduler()
    answers = [scheduler.submit_tokens(new_session(model), [5], max_new_tokens=800, stop_tokens=[]) for _ in range(3)]
    next(answers[0])
    if sys.argv[3] == "False":
        scheduler.close()
    print("at the end", flush=True)
    break
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parent.parent, tmp_path, str(is_open)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (0, "at the end\n"), ended.stderr
