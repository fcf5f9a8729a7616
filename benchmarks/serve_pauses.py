"""How long somebody who chats has to wait while a long prompt is being read.

    python -m benchmarks.serve_pauses [--tokens 1M]

Serves the passkey model on the CPU. One client sends a text of so many words. Another one streams answers all the time,
first alone, then while the text is read. Told are the times from token to token that this client sees, and that the
long prompt is answered rightly.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2

from sala_export.machine import describe_machine
from sala_export.specs import parse_tokens

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.passkey_text import WORDS, passkey_text, passkey_text_bundle, question
from support.serve_process import server_process

_CHAT = "/v1/chat/completions"


async def chat(client: httpx2.AsyncClient, until: asyncio.Event) -> list[float]:
    """Seconds from one piece of an answer to the next, of answers that are streamed one after the other."""
    request = {"model": "model", "messages": [{"role": "user", "content": "w40 k1"}], "max_tokens": 200, "stream": True}
    gaps: list[float] = []
    while not until.is_set():
        async with client.stream("POST", _CHAT, json={**request, "ignore_eos": True}) as answer:
            last = None
            async for _ in answer.aiter_raw():
                now = time.perf_counter()
                gaps += [] if last is None else [now - last]
                last = now
    return gaps


async def measure(url: str, tokens: int, seconds_alone: float) -> tuple[list[float], list[float], float, bool]:
    """Gaps alone, gaps beside the long prompt, seconds of the long prompt, and whether its answer was right."""
    text, needles = passkey_text(tokens)
    messages = [{"role": "user", "content": f"{text} {question(needles[1])}"}]
    request = {"model": "model", "messages": messages, "max_tokens": 1, "temperature": 0}
    async with httpx2.AsyncClient(base_url=url, timeout=None) as client:
        until = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds_alone, until.set)
        alone = await chat(client, until)
        until = asyncio.Event()
        beside = asyncio.ensure_future(chat(client, until))
        start = time.perf_counter()
        answer = await client.post(_CHAT, json=request)
        seconds = time.perf_counter() - start
        until.set()
        content = answer.json()["choices"][0]["message"]["content"]
        return alone, await beside, seconds, content == WORDS[needles[1].value]


def described(gaps: Sequence[float]) -> str:
    """Quantiles of gaps, in milliseconds."""
    ordered = sorted(gaps)
    middle, late = (ordered[int(share * (len(ordered) - 1))] * 1000 for share in (0.5, 0.99))
    return f"half at most {middle:.1f} ms, 99 % {late:.0f} ms, all {ordered[-1] * 1000:.0f} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 1 if the answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1M", help="tokens of the long prompt")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to chat alone first")
    options = parser.parse_args(arguments)
    print(f"machine: {describe_machine()}")
    # The prompt, the question and the answer.
    tokens = parse_tokens(options.tokens) - 3
    with server_process(passkey_text_bundle(), "--max-contexts", "0") as (url, _):
        alone, beside, seconds, is_right = asyncio.run(measure(url, tokens, options.seconds))
    print(f"from token to token, alone: {described(alone)}")
    print(f"while {tokens:,} tokens were read in {seconds:.0f} s: {described(beside)}")
    print("the long prompt was answered rightly" if is_right else "fault: the answer to the long prompt is wrong")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
