"""Answers in an event loop: the same pieces as in a thread, every change heard, nothing left in the loop."""

from __future__ import annotations

import asyncio
import ctypes
import select
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cyclic_text import CyclicTokenizer
from support.small_sessions import CHUNK_TOKENS, new_session, random_ids, small_model

from sala_export.errors import RunError, SessionError
from sala_export.runtime.model import Model
from sala_export.runtime.scheduler import Answer, Scheduler
from sala_export.runtime.session import Session
from sala_export.torch_runtime.engine import TorchExecution


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model("onnxruntime", tmp_path_factory.mktemp("async_answers"))


def endless(scheduler: Scheduler, model: Model, session: Session | None = None) -> Answer[int]:
    """An answer that takes minutes unless it is cancelled."""
    session = session or model.session(max_context=100_000)
    return scheduler.submit_tokens(session, [5], max_new_tokens=90_000, stop_tokens=[])


async def pieces_of(answer: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in answer]


async def pieces_by_changes(answer: Answer[Any]) -> list[Any]:
    pieces: list[Any] = []
    while not answer.is_done:
        await answer.changed()
        pieces += answer.taken()
    await answer.changed()
    assert answer.taken() == []
    return pieces


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("take", [pieces_of, pieces_by_changes])
@pytest.mark.parametrize("strings", [None, "three"])
def test_answers_of_many_are_those_of_a_thread(take: Any, strings: str | None, model: Model) -> None:
    reader = Model(model._native, CyclicTokenizer())
    prompts = [random_ids(length, length) for length in (1, 48, 300, 97, 5, 260)]
    options = {"max_new_tokens": 20, "stop_tokens": [], "stop_strings": strings}
    with reader.scheduler() as scheduler:
        expected = [[*scheduler.submit(new_session(reader), prompt, **options)] for prompt in prompts]

        async def work() -> list[list[str]]:
            answers = [scheduler.submit(new_session(reader), prompt, **options) for prompt in prompts]
            return await asyncio.gather(*map(take, answers))

        found = run(work())
    assert ["".join(each) for each in found] == ["".join(each) for each in expected]
    assert all(all(each) for each in found), "no piece is empty"


def test_change_comes_for_each_chunk_of_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_run = threading.Semaphore(0)
    run_step = TorchExecution.run

    def run_when_told(self: TorchExecution, inputs: Any, logits: Any) -> None:
        may_run.acquire()
        run_step(self, inputs, logits)

    async def work(model: Model) -> None:
        with model.scheduler() as scheduler:
            answer = scheduler.submit_tokens(new_session(model), random_ids(CHUNK_TOKENS * 3 + 1), max_new_tokens=0)
            for chunk in range(4):
                await answer.changed()
                assert (answer.progress.stage, answer.progress.prompt_tokens_done) == ("prefill", chunk * CHUNK_TOKENS)
                assert answer.taken() == []
                may_run.release()
            await answer.ended()
            await answer.changed()
            assert answer.progress.prompt_tokens_done == CHUNK_TOKENS * 3 + 1

    for model in small_model("torch", tmp_path):
        monkeypatch.setattr(TorchExecution, "run", run_when_told)
        run(work(model))


def test_error_comes_behind_the_pieces_that_were_drawn_before(model: Model) -> None:
    class Broken(CyclicTokenizer):
        class Decoder(CyclicTokenizer.Decoder):
            count = 0

            def push(self, token_id: int) -> str:
                self.count += 1
                if self.count > 3:
                    raise LookupError("of the tokenizer")
                return "ab"

    async def work() -> None:
        reader = Model(model._native, Broken())
        with reader.scheduler(max_cache_bytes="1G") as scheduler:
            answer = scheduler.submit(new_session(reader), [5], stop_strings="x", max_new_tokens=9, stop_tokens=[])
            await answer.ended()
            assert answer.taken() == ["ab"] * 3
            assert not answer.is_done
            with pytest.raises(LookupError, match="of the tokenizer"):
                answer.taken()
            assert answer.is_done
            assert answer.taken() == await pieces_of(answer) == []
        with reader.scheduler(max_cache_bytes=1) as scheduler:
            answer = scheduler.submit(new_session(reader), [5])
            with pytest.raises(RunError, match="max_cache_bytes"):
                await pieces_of(answer)
            assert await pieces_of(answer) == []

    run(work())


def test_task_that_is_cancelled_leaves_its_answer(model: Model) -> None:
    async def work() -> None:
        session = model.session(max_context=100_000)
        with model.scheduler() as scheduler:
            answer = endless(scheduler, model, session)
            first = await anext(answer)
            waits = asyncio.ensure_future(answer.ended())
            await asyncio.sleep(0)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            assert await anext(answer) >= 0, "it goes on"
            answer.cancel()
            await answer.ended()
            session.prefill([5])
            rest = answer.taken()
            assert answer.is_done
            assert answer.finish_reason == "cancelled"
            assert session.tokens[1] == first
            assert len(rest) == session.position - 4

    run(work())


@pytest.mark.parametrize("is_other_thread", [False, True])
def test_end_of_a_scheduler_wakes_who_waits_and_leaves_the_loop(is_other_thread: bool, model: Model) -> None:
    async def work() -> None:
        scheduler = model.scheduler()
        answers = [endless(scheduler, model) for _ in range(3)]
        waits = [asyncio.ensure_future(pieces_of(answer)) for answer in answers]
        await asyncio.sleep(0)
        if is_other_thread:
            thread = threading.Thread(target=scheduler.close)
            thread.start()
            await asyncio.gather(*waits)
            thread.join()
        else:
            scheduler.close()
            await asyncio.gather(*waits)
        assert {answer.finish_reason for answer in answers} == {"cancelled"}
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_reader(scheduler._native.descriptor), "it is watched no longer"

    run(work())


def test_second_loop_is_refused_until_the_first_is_closed(model: Model) -> None:
    with model.scheduler() as scheduler:
        answer = endless(scheduler, model)
        refused: list[str] = []

        def other() -> None:
            with pytest.raises(SessionError) as raised:
                run(answer.ended())
            refused.append(str(raised.value))

        async def work() -> None:
            waits = asyncio.create_task(answer.ended())  # a first token may be there already: then nobody waits
            await asyncio.sleep(0)
            thread = threading.Thread(target=other)
            thread.start()
            await asyncio.get_running_loop().run_in_executor(None, thread.join)
            assert not waits.done()
            waits.cancel()

        run(work())
        assert "another event loop waits" in refused[0]
        answer.cancel()
        run(answer.ended())


def test_scheduler_goes_on_without_the_lock_of_the_interpreter(model: Model) -> None:
    """Nothing here lets it go, so a thread that wanted it would never write to the descriptor."""
    session = new_session(model)
    with model.scheduler() as scheduler:
        descriptor = scheduler._native.descriptor
        waited = (ctypes.c_int * 2)(descriptor, select.POLLIN)  # a pollfd
        poll, read = ctypes.PyDLL(None).poll, ctypes.PyDLL(None).read
        before = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            answer = scheduler.submit_tokens(session, random_ids(100), max_new_tokens=30, stop_tokens=[])
            is_there = 1
            while is_there == 1 and answer.progress.stage != "ended":
                is_there = poll(waited, 1, 20_000)
                read(descriptor, (ctypes.c_char * 8)(), 8)
        finally:
            sys.setswitchinterval(before)
        assert is_there == 1
        assert len(answer.taken()) == 30
