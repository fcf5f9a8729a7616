"""A fleet on Ray Serve, as its clients see it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from support.documents import ROOT
from support.fleet_process import RunningFleet, fleet_process, wait_until
from support.free_ports import free_ports
from support.text_bundles import tiny_text_bundle

from sala_export.fleet.options import FleetOptions
from sala_export.fleet.ray import app

pytest.importorskip("ray", reason="ray is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
CONVERSATIONS = 8


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    (port,) = free_ports(1)
    options = {
        "bundle": str(tiny_text_bundle()),
        "replicas": 2,
        "num_gpus": 0,
        "model_name": "model",
        "state_store": str(tmp_path_factory.mktemp("fleet") / "states"),
    }
    with fleet_process(port, options) as running:
        yield running


class Conversation:
    """A client that sends all of a conversation each time, and tells nothing else that would name it."""

    def __init__(self, url: str, number: int) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        self._messages: list[dict[str, str]] = []
        self._next = f"Story {number}. " + "It was a dark and stormy night. " * 30
        self.usage: Any = None

    def turn(self, *, max_tokens: int = 4) -> Any:
        self._messages.append({"role": "user", "content": self._next})
        answer = self._client.chat.completions.create(
            model="model", messages=self._messages, max_tokens=max_tokens, temperature=0
        )
        self._messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        self._next = "And then?"
        before, self.usage = self.usage, answer.usage
        return before


def answering(url: str, gauge: str) -> float:
    """A gauge, of all replicas together."""
    text = httpx2.get(f"{url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{gauge}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def answered(url: str) -> dict[str, float]:
    """Requests that each replica has answered."""
    text = httpx2.get(f"{url}/metrics").text
    pattern = r'sala_requests_total\{endpoint="/v1/chat/completions",replica="(\w+)",status="200"\} (\S+)'
    return {name: float(count) for name, count in re.findall(pattern, text)}


def test_a_killed_replica_takes_no_conversation_with_it(fleet: RunningFleet) -> None:
    conversations = [Conversation(fleet.url, number) for number in range(CONVERSATIONS)]
    with ThreadPoolExecutor(CONVERSATIONS) as pool:

        def all_turns(**options: int) -> list[Future[Any]]:
            return [pool.submit(each.turn, **options) for each in conversations]

        for each in all_turns():
            each.result()
        # Ray's names of replicas are random, and all may fall to one: a few more then, until both have some.
        while len(answered(fleet.url)) < 2 and len(conversations) < 8 * CONVERSATIONS:
            conversations.append(Conversation(fleet.url, len(conversations)))
            conversations[-1].turn()
        _require_found(conversations, all_turns())
        before = answered(fleet.url)
        assert len(before) == 2, "both replicas have conversations"
        # The second turn of each has gone where the first went.
        assert all(count % 2 == 0 for count in before.values())

        running = all_turns(max_tokens=64)
        time.sleep(0.3)
        killed, _ = fleet.replicas()
        os.kill(killed, signal.SIGKILL)
        _require_found(conversations, running)
    assert killed not in fleet.replicas()
    assert httpx2.get(f"{fleet.url}/health").json() == {"status": "ok"}


def _require_found(conversations: list[Conversation], turns: list[Future[Any]]) -> None:
    """Nothing that an ended turn has read is read again, but for how the template writes its answer."""
    for conversation, turn in zip(conversations, turns, strict=True):
        last = turn.result()
        assert conversation.usage.prompt_tokens_details.cached_tokens >= last.prompt_tokens > 512


def test_builder_and_the_example_take_what_ray_takes() -> None:
    import yaml
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    example = yaml.safe_load((ROOT / "examples" / "fleet" / "serve.yaml").read_text(encoding="utf-8"))
    (described,) = ServeDeploySchema.model_validate(example).applications
    assert described.import_path == f"{app.__module__}:{app.__name__}"
    assert FleetOptions.of(described.args).replicas == (1, 8)
    assert isinstance(app(described.args), Application)


def test_stream_comes_in_parts(fleet: RunningFleet) -> None:
    client = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="model", messages=[{"role": "user", "content": "Hello"}], max_tokens=6, temperature=0, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert [chunk.finish_reason for chunk in chunks][-1] == "length"
    assert len(chunks) > 3


def test_client_that_leaves_ends_its_answer(fleet: RunningFleet) -> None:
    body = {"model": "model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100_000}
    endless = {**body, "stream": True, "ignore_eos": True}
    with httpx2.stream("POST", f"{fleet.url}/v1/chat/completions", json=endless, timeout=60) as answer:
        lines = answer.iter_lines()
        while '"content":"' not in next(lines).replace('"content":""', ""):
            continue
        assert answering(fleet.url, "sala_requests_generate") == 1
    wait_until(lambda: answering(fleet.url, "sala_requests_generate") == 0, seconds=30)


def test_what_a_server_refuses_is_refused(fleet: RunningFleet) -> None:
    unknown = httpx2.post(
        f"{fleet.url}/v1/chat/completions",
        json={"model": "model", "messages": [{"role": "user", "content": "Hi"}], "n_predict": 1},
    )
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_parameter")
    stranger = httpx2.get(f"{fleet.url}/v1/models", headers={"Host": "evil.example"})
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (403, "wrong_host")
