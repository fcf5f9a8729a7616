"""The worker of NVIDIA Dynamo: its engine as Dynamo's base class wants it, and behind Dynamo's own frontend."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.free_ports import free_ports
from support.text_bundles import tiny_text_bundle

import sala_export

pytest.importorskip("dynamo.common.backend", reason="ai-dynamo is not installed")
from dynamo._core import Context
from dynamo.common.backend import LLMEngine
from dynamo.llm.exceptions import HttpError, InvalidArgument

from sala_export.errors import SalaError
from sala_export.fleet.dynamo_engine import SalaEngine, as_dynamo
from sala_export.serving.errors import of_sala

PROMPT = [(7 * place) % 400 + 20 for place in range(700)]
NEW_TOKENS = 12
GREEDY = {
    "token_ids": PROMPT,
    "sampling_options": {"temperature": 0.0},
    "stop_conditions": {"max_tokens": NEW_TOKENS, "ignore_eos": True},
}


async def opened(store: Path) -> SalaEngine:
    engine, config = await SalaEngine.from_args(
        [str(tiny_text_bundle()), "--state-store", str(store), "--model-name", "my model"]
    )
    assert isinstance(engine, LLMEngine)
    assert (Path(config.model_name) / "tokenizer.json").exists()
    started = await engine.start(1)
    assert started.served_model_name == config.served_model_name == "my model"
    assert started.llm.context_length > len(PROMPT)
    return engine


async def answer(engine: SalaEngine, request: dict[str, Any]) -> list[dict[str, Any]]:
    return [chunk async for chunk in engine.generate(request, Context())]


def test_tokens_are_those_of_a_session_and_a_new_worker_finds_what_was_read(tmp_path: Path) -> None:
    async def ask_twice() -> list[list[dict[str, Any]]]:
        found = []
        for _ in range(2):
            engine = await opened(tmp_path / "states")
            found.append(await answer(engine, GREEDY))
            await engine.cleanup()
            await engine.cleanup()
        return found

    session = sala_export.load(tiny_text_bundle(), threads=1).session()
    session.prefill(PROMPT)
    expected = [*session.generate_tokens(max_new_tokens=NEW_TOKENS, stop_tokens=[])]
    for chunks, cached in zip(asyncio.run(ask_twice()), (0, len(PROMPT)), strict=True):
        assert [token for chunk in chunks for token in chunk["token_ids"]] == expected
        assert chunks[-1]["finish_reason"] == "length"
        assert chunks[-1]["completion_usage"] == {
            "prompt_tokens": len(PROMPT),
            "completion_tokens": NEW_TOKENS,
            "total_tokens": len(PROMPT) + NEW_TOKENS,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def test_aborted_answer_ends_and_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    async def ask() -> list[dict[str, Any]]:
        engine = await opened(tmp_path / "states")
        for group, fields in (
            ("sampling_options", {"guided_decoding": {"json": {}}}),
            ("sampling_options", {"top_p": 2.0}),
            ("stop_conditions", {"max_tokens": 1 << 30}),
        ):
            with pytest.raises(InvalidArgument, match=next(iter(fields))):
                await answer(engine, {**GREEDY, group: fields})
        context, chunks = Context(), []
        endless = {**GREEDY, "stop_conditions": {"max_tokens": 100_000, "ignore_eos": True}}
        async for chunk in engine.generate(endless, context):
            chunks.append(chunk)
            if len(chunks) == 3:
                await engine.abort(context)
        await engine.cleanup()
        return chunks

    chunks = asyncio.run(ask())
    assert chunks[-1]["finish_reason"] == "cancelled"
    assert len(chunks) < 100


def test_requests_of_one_id_and_a_cancelled_one_end_on_their_own(tmp_path: Path) -> None:
    async def ask() -> list[list[dict[str, Any]]]:
        engine = await opened(tmp_path / "states")

        async def tokens(most: int) -> list[dict[str, Any]]:
            request = {**GREEDY, "stop_conditions": {"max_tokens": most, "ignore_eos": True}}
            return [chunk async for chunk in engine.generate(request, Context("one"))]

        endless = asyncio.create_task(tokens(100_000))
        found = await asyncio.gather(tokens(2), tokens(40))
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        await engine.cleanup()
        return found

    found = asyncio.run(ask())
    assert [len(_ids(chunks)) for chunks in found] == [2, 40]


def test_own_stop_tokens_end_an_answer_that_the_models_do_not_end(tmp_path: Path) -> None:
    async def ask() -> tuple[list[int], list[int]]:
        engine = await opened(tmp_path / "states")
        whole = _ids(await answer(engine, GREEDY))
        stop = {**GREEDY["stop_conditions"], "stop_token_ids": [whole[5]], "stop_token_ids_hidden": [whole[0]]}
        stopped = _ids(await answer(engine, {**GREEDY, "stop_conditions": stop}))
        await engine.cleanup()
        return whole, stopped

    whole, stopped = asyncio.run(ask())
    assert whole[0] != whole[5]
    assert stopped == whole[: whole.index(whole[5])]


@pytest.mark.parametrize(("code", "status"), [("Busy", 429), ("OutOfMemory", 503), ("", 500)])
def test_what_the_worker_cannot_do_now_is_not_the_clients_fault(code: str, status: int) -> None:
    error = SalaError("no")
    error.code = code
    told = as_dynamo(of_sala(error))
    assert isinstance(told, HttpError)
    assert (told.code, told.message) == (status, "no")


def _ids(chunks: list[dict[str, Any]]) -> list[int]:
    return [token for chunk in chunks for token in chunk["token_ids"]]


@contextmanager
def running(environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-m", *command], env={**os.environ, **environment}) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def test_frontend_serves_the_model(tmp_path: Path) -> None:
    pytest.importorskip("dynamo.frontend.main", reason="ai-dynamo is not installed")
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}/v1"
    environment = {"DYN_FILE_KV": str(tmp_path / "discovery"), "DYN_LOG": "error", "HOME": str(tmp_path)}
    file = ("--discovery-backend", "file")
    worker = ("sala_export.fleet.dynamo", str(tiny_text_bundle()), "--model-name", "model", *file)
    with running(environment, "dynamo.frontend", "--http-port", str(port), *file), running(environment, *worker):
        end = time.monotonic() + 60
        while not _models(url):
            assert time.monotonic() < end, "the model did not come up"
            time.sleep(0.5)
        body = {"model": "model", "messages": [{"role": "user", "content": "word " * 400}], "max_tokens": 4}
        answers = [httpx2.post(f"{url}/chat/completions", json={**body, "temperature": 0}).json() for _ in range(2)]
    texts = [each["choices"][0]["message"]["content"] for each in answers]
    assert texts[0] == texts[1] != ""
    usage = answers[1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] > 512


def _models(url: str) -> list[Any]:
    try:
        return httpx2.get(f"{url}/models").json()["data"]
    except httpx2.TransportError:
        return []
