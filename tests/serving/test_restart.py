"""What a server with a state store has read is known after it was ended, and after it was killed."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import openai
import pytest
from support.passkey import Passkey
from support.passkey_text import WORDS, passkey_text, passkey_text_bundle, question
from support.serve_process import server_process
from support.server import running_server

from sala_export.cli.app import run
from sala_export.runtime.state_store import StateStore

MARGIN = 512
"""Tokens before the end of a long prompt where the server keeps a checkpoint."""


def cached_tokens(url: str, text: str, needle: Passkey) -> int:
    """Ask for a needle, and tell how many tokens were not read again."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": f"{text} {question(needle)}"}]
    answer = client.chat.completions.create(model="model", messages=messages, max_tokens=1, temperature=0)
    assert answer.choices[0].message.content == WORDS[needle.value]
    return answer.usage.prompt_tokens_details.cached_tokens


def test_text_is_known_after_a_restart(tmp_path: Path) -> None:
    length = 6000
    text, needles = passkey_text(length)
    for needle, least in zip(needles, [0, *[length + 2 - MARGIN] * 4], strict=True):
        with running_server(passkey_text_bundle(), store=StateStore(tmp_path / "states")) as server:
            assert least <= cached_tokens(server.url, text, needle) <= least + MARGIN


@pytest.mark.release
def test_text_is_known_after_a_kill(tmp_path: Path) -> None:
    length = 65536
    text, needles = passkey_text(length)
    options = ["--state-store", str(tmp_path / "states")]
    with server_process(passkey_text_bundle(), *options) as (url, process):
        assert cached_tokens(url, text, needles[0]) == 0
        assert cached_tokens(url, text, needles[1]) >= 0.99 * length
        store, end = StateStore(tmp_path / "states"), time.monotonic() + 60
        while max((state.position for state in store.states), default=0) <= length and time.monotonic() < end:
            time.sleep(0.1)
        process.kill()
    with server_process(passkey_text_bundle(), *options) as (url, process):
        assert cached_tokens(url, text, needles[2]) >= 0.99 * length
        metrics = httpx2.get(f"{url}/metrics").text
    read = next(line for line in metrics.splitlines() if line.startswith('sala_prompt_tokens_total{source="read"}'))
    assert float(read.split()[1]) <= 0.01 * length


def test_waiting_for_a_store_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(passkey_text_bundle()), "--port", "0", "--wait-for-store"]) == 2
    assert "give --state-store DIR, too" in " ".join(capsys.readouterr().err.split())
