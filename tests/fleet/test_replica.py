"""A replica gives the answers of the server, ends when its client leaves, and knows when it is broken."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from support.text_bundles import tiny_text_bundle

from sala_export.fleet.options import FleetOptions
from sala_export.fleet.replica import MOST_FAULTS, Replica, open_replica
from sala_export.fleet.replica_metrics import merged_metrics
from sala_export.runtime.state_store import StateStore


def options_of(**further: Any) -> FleetOptions:
    return FleetOptions.of({"bundle": str(tiny_text_bundle()), "num_gpus": 0, "model_name": "model", **further})


def request(path: str) -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    return {**scope, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}


def chat(*, words: int = 400, **further: Any) -> bytes:
    messages = [{"role": "user", "content": f"{words} words: " + "word " * words}]
    return json.dumps({"model": "model", "messages": messages, "temperature": 0, **further}).encode()


async def whole(replica: Replica, body: bytes) -> dict[str, Any]:
    parts = [each async for each in replica.answer(request("/v1/chat/completions"), body)]
    assert [each["type"] for each in parts] == ["http.response.start", "http.response.body"]
    return dict(json.loads(parts[1]["body"]))


def test_turns_are_in_the_store_when_they_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = StateStore.save

    def save_slowly(store: StateStore, session: Any) -> None:
        time.sleep(0.3)
        save(store, session)

    monkeypatch.setattr(StateStore, "save", save_slowly)
    options = options_of(state_store=str(tmp_path / "states"), max_contexts=1)

    async def ask() -> tuple[set[int], set[int]]:
        replica = await open_replica(options)
        answers = await asyncio.gather(*(whole(replica, chat(words=words, max_tokens=4)) for words in (400, 450, 500)))
        # Only one context may stay, but none leaves before it has been stored.
        stored = {state.position for state in StateStore(tmp_path / "states").states}
        await replica.close()
        return {answer["usage"]["prompt_tokens"] for answer in answers}, stored

    prompts, stored = asyncio.run(ask())
    assert len(prompts) == 3
    assert prompts <= stored


def test_nobody_waits_for_a_save_behind_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(store: StateStore, session: Any) -> None:
        time.sleep(0.3)
        raise MemoryError("no room for a thread")

    monkeypatch.setattr(StateStore, "save", fail)

    async def ask() -> list[dict[str, Any]]:
        replica = await open_replica(options_of(state_store=str(tmp_path / "states")))
        chats = (whole(replica, chat(words=words, max_tokens=4)) for words in (400, 450, 500))
        answers = await asyncio.wait_for(asyncio.gather(*chats), 20)
        await replica.close()
        return answers

    assert all(answer["usage"]["completion_tokens"] == 4 for answer in asyncio.run(ask()))
    assert "contexts were not saved" in caplog.text


def test_client_that_leaves_ends_its_answer() -> None:
    options = options_of()

    async def leave() -> None:
        replica = await open_replica(options)
        body = chat(max_tokens=100_000, stream=True, ignore_eos=True)
        answer = replica.answer(request("/v1/chat/completions"), body)
        for _ in range(4):
            await anext(answer)
        await answer.aclose()
        async with asyncio.timeout(10):
            while b"sala_requests_generate 0.0" not in replica.metrics():
                await asyncio.sleep(0.02)
        await replica.close()

    asyncio.run(leave())


def test_replica_whose_answers_are_faults_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of()

    async def fail() -> None:
        replica = await open_replica(options)
        right, wrong = chat(max_tokens=1), chat(max_tokens=0)
        for _ in range(MOST_FAULTS):
            assert "error" in await whole(replica, wrong)
        replica.check_health()  # what a client did wrong is no fault
        with monkeypatch.context() as patch:
            patch.setattr(replica._service.answers, "room_for", lambda *_, **__: 1 / 0)
            for _ in range(MOST_FAULTS):
                replica.check_health()
                with pytest.raises(ZeroDivisionError):
                    await whole(replica, right)
        with pytest.raises(RuntimeError, match="the last 3 answers were faults"):
            replica.check_health()
        assert "choices" in await whole(replica, right)
        replica.check_health()
        await replica.close()

    asyncio.run(fail())


def test_metrics_of_replicas_are_told_apart() -> None:
    text = '# HELP sala_a_total Some.\n# TYPE sala_a_total counter\nsala_a_total{{kind="x"}} {}\n'
    merged = merged_metrics({"one": text.format(1).encode(), "two": text.format(2).encode()}).decode()
    assert 'sala_a_total{kind="x",replica="one"} 1.0' in merged
    assert 'sala_a_total{kind="x",replica="two"} 2.0' in merged
    assert merged.count("# TYPE") == 1
