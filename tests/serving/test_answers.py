"""Answers that end early, that find no room, or that several threads could get at."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.passkey_text import WORDS, passkey_text, passkey_text_bundle, question

import sala_export
from sala_export.errors import BundleError, RunError, StateError
from sala_export.runtime.scheduler import RequestProgress
from sala_export.runtime.session import Session
from sala_export.serving.answers import AnswerRequest, Usage
from sala_export.serving.echo import Echo
from sala_export.serving.errors import ApiError, of_sala
from sala_export.serving.events import End, Piece, Progress
from sala_export.serving.kept import Ids
from sala_export.serving.service import Service
from sala_export.serving.settings import Settings
from sala_export.serving.threads import in_thread

LENGTH = 3000
SETTINGS = Settings(model_names=("model",))


@asynccontextmanager
async def served(settings: Settings = SETTINGS) -> AsyncIterator[Service]:
    model = sala_export.load(passkey_text_bundle(), threads=2)
    async with Service.open(model, settings, store=None) as service:
        yield service


def asked(service: Service, text: str, *, choices: int = 1, new_tokens: int = 1) -> AnswerRequest:
    ids = service.prompts.of_text(text).ids
    return AnswerRequest(ids=ids, options=[{"max_new_tokens": new_tokens, "stop_tokens": []}] * choices)


async def answered(service: Service, request: AnswerRequest) -> tuple[list[str], Usage]:
    """The texts of the choices, when their contexts are kept."""
    usage, texts = Usage(prompt_tokens=len(request.ids)), [""] * len(request.options)
    async with service.answers.answering(request, usage) as events:
        async for event in events:
            if isinstance(event, Piece):
                texts[event.choice] += event.text
    await service.answers.settle()
    return texts, usage


def test_choices_leave_nothing_behind() -> None:
    async def run() -> None:
        # One session at a time takes no shared steps, whose memory would stay for the next ones.
        async with served(replace(SETTINGS, max_contexts=0, max_sessions=1)) as service:
            for place in range(4):
                await answered(service, asked(service, f"w{40 + place} k1 " * 50, choices=3))
                gc.collect()
                assert (service.answers.requests, len(service.contexts.kept)) == (0, 0)
                assert service.model.cache_bytes == 0

    asyncio.run(run())


def test_more_choices_than_may_wait_are_all_drawn() -> None:
    async def run() -> list[str]:
        async with served(replace(SETTINGS, max_sessions=1, max_waiting=1)) as service:
            text, needles = passkey_text(200)
            texts, _ = await answered(service, asked(service, f"{text} {question(needles[0])}", choices=5))
            return texts

    assert len(set(asyncio.run(run()))) == 1


def test_busy_server_lets_no_context_go_for_a_request_that_it_refuses() -> None:
    async def run() -> None:
        async with served(replace(SETTINGS, max_sessions=1, max_waiting=0)) as service:
            await answered(service, asked(service, passkey_text(200)[0]))
            request = asked(service, "k1", new_tokens=1_000_000)
            async with service.answers.answering(request, Usage(prompt_tokens=1)) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        break
                with pytest.raises(ApiError) as refused:
                    await answered(service, asked(service, "k2"))
            assert (refused.value.status_code, len(service.contexts.kept)) == (429, 1)

    asyncio.run(run())


class OutOfMemoryAnswer:
    """An answer whose memory ended within its prompt."""

    progress = RequestProgress(stage="ended", prompt_tokens_done=0, prompt_tokens=0, new_tokens=0)
    finish_reason = None

    def taken(self) -> list[int]:
        error = RunError("no memory")
        error.code = "OutOfMemory"
        raise error

    def cancel(self) -> None:
        """It has ended."""

    async def ended(self) -> None:
        """It has."""


async def read_half_at_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the memory of the first request end within its prompt. Returns: tokens that are submitted, as they come."""
    await answered(service, asked(service, passkey_text(100, seed=9)[0]))  # something to let go of
    submit, lengths = service.answers._scheduler.submit_tokens, []

    def submit_half(session: Session, ids: Ids, **options: Any) -> Any:
        lengths.append(len(ids))
        if len(lengths) > 1:
            return submit(session, ids, **options)
        session.prefill(ids[: LENGTH // 2], context_length=len(ids))
        return OutOfMemoryAnswer()

    monkeypatch.setattr(service.answers._scheduler, "submit_tokens", submit_half)
    return lengths


def test_prompt_goes_on_where_its_memory_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served() as service:
            lengths = await read_half_at_first(service, monkeypatch)
            text, needles = passkey_text(LENGTH)
            (answer,), _ = await answered(service, asked(service, f"{text} {question(needles[2])}"))
            assert answer == WORDS[needles[2].value]
            assert lengths == [LENGTH + 2, LENGTH + 2 - LENGTH // 2]

    asyncio.run(run())


def test_scored_prompt_begins_again_where_its_memory_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served() as service:
            lengths = await read_half_at_first(service, monkeypatch)
            text, _ = passkey_text(LENGTH)
            request = asked(service, text)
            request.echo = Echo(text=text, has_added_tokens=True, logprobs=1)
            request.with_tokens = True
            pieces: list[Piece] = []
            usage = Usage(prompt_tokens=len(request.ids))
            async with service.answers.answering(request, usage) as events:
                pieces += [event async for event in events if isinstance(event, Piece)]
            assert lengths == [LENGTH, LENGTH]
            assert pieces[0].text == text
            scores = service.model.session().score(request.ids)
            found = [token.logprobs.logprob for token in pieces[0].tokens if token.logprobs is not None]
            np.testing.assert_allclose(found, scores.logprobs[1:], atol=1e-4)

    asyncio.run(run())


def test_server_that_ends_within_a_scored_prompt_says_so() -> None:
    async def run() -> ApiError:
        async with served() as service:
            request = asked(service, passkey_text(LENGTH)[0])
            request.echo = Echo(text=None, has_added_tokens=False, logprobs=0)
            answering = asyncio.ensure_future(answered(service, request))
            while service.answers.counter("prefill")() == 0:
                await asyncio.sleep(0)
            await service.answers.drain()
            with pytest.raises(ApiError) as ended:
                await answering
            return ended.value

    error = asyncio.run(run())
    assert (error.status_code, error.message) == (503, "the server is ending")


def test_request_that_never_fits_is_not_told_to_wait() -> None:
    async def run() -> ApiError:
        async with served(replace(SETTINGS, max_cache_bytes=10_000)) as service:
            with pytest.raises(ApiError) as refused:
                await answered(service, asked(service, passkey_text(LENGTH)[0]))
            return refused.value

    error = asyncio.run(run())
    assert (error.status_code, error.code, error.headers) == (400, "context_length_exceeded", None)
    assert "--max-cache" in error.message


def test_thread_is_waited_for_when_its_task_is_cancelled() -> None:
    order: list[str] = []

    def work() -> None:
        time.sleep(0.2)
        order.append("thread")

    async def run() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        order.append("task")

    asyncio.run(run())
    assert order == ["thread", "task"]


def test_two_threads_never_fork_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most = 0, 0
    lock = threading.Lock()
    fork = Session.fork

    def slow_fork(self: Session) -> Session:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.1)
        forked = fork(self)
        with lock:
            at_work -= 1
        return forked

    async def run() -> None:
        async with served() as service:
            text = passkey_text(200)[0]
            await answered(service, asked(service, text))
            monkeypatch.setattr(Session, "fork", slow_fork)
            first = asyncio.create_task(answered(service, asked(service, f"{text} w40")))
            await asyncio.sleep(0.03)
            first.cancel()
            _, usage = await answered(service, asked(service, f"{text} w41"))
            assert usage.cached_tokens == 200

    asyncio.run(run())
    assert most == 1


def test_fault_in_one_of_several_choices_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def allowed(self) -> None:
            raise ValueError("broken")

        def take(self, token_id: int) -> None:
            raise AssertionError

    async def run() -> None:
        async with served() as service:
            request = asked(service, "w40 k1", choices=2)
            request.options = [request.options[0], {**request.options[0], "constraint": Broken()}]
            async with asyncio.timeout(20):
                with pytest.raises(ValueError, match="broken"):
                    await answered(service, request)

    asyncio.run(run())


def test_store_that_fails_keeps_nobody_from_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenStore:
        def longest(self, *_: object) -> int:
            raise StateError("/some/where/lock cannot be used")

    async def run() -> list[str]:
        async with served() as service:
            monkeypatch.setattr(service.contexts.kept, "_store", BrokenStore())
            monkeypatch.setattr(service.contexts.kept, "_save_all", lambda: asyncio.sleep(0))
            text, needles = passkey_text(LENGTH)
            texts, _ = await answered(service, asked(service, f"{text} {question(needles[0])}"))
            return texts

    assert asyncio.run(run())[0].startswith("v")


def test_server_that_ends_keeps_what_was_being_read() -> None:
    async def run() -> int:
        async with served() as service:
            request = asked(service, passkey_text(20_000)[0])

            async def read(is_reading: Callable[[], None]) -> None:
                async with service.answers.answering(request, Usage(prompt_tokens=1)) as events:
                    async for event in events:
                        if isinstance(event, Progress) and event.processed:
                            is_reading()
                        assert not isinstance(event, End)

            reading = asyncio.Event()
            task = asyncio.create_task(read(reading.set))
            await reading.wait()
            task.cancel()
            await service.answers.drain()
            return len(service.contexts.kept)

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("places", range(5))
def test_block_may_be_left_at_any_event(places: int) -> None:
    async def run() -> None:
        async with served() as service:
            request = asked(service, f"w{50 + places} k1", choices=2, new_tokens=50)
            async with service.answers.answering(request, Usage(prompt_tokens=2)) as events:
                for _ in range(places):
                    await anext(events)
            await service.answers.drain()
            assert service.answers.requests == 0

    asyncio.run(run())


def test_damaged_weights_are_the_fault_of_the_server() -> None:
    refused = of_sala(BundleError("/data/out.sala/graph/model.safetensors was cut short"))
    assert (refused.status_code, refused.kind) == (500, "server_error")
    assert refused.message == "model.safetensors was cut short"
