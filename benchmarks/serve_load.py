"""Many clients at one server: right answers, how long they take, and what stays behind.

    python -m benchmarks.serve_load [--requests 10000] [--clients 32] [--seed 0]

Starts `sala-export serve` with the passkey model on the CPU. Each client sends one request after the other: chats whose
answer it knows, in one piece or as a stream, of which it reads some slowly and leaves some in the middle; bodies that
are garbage, and bodies that are too large. It counts as a fault if an answer is wrong, a status is not the one to be
expected, if memory grows from the end of the first tenth to the end, or if descriptors or requests stay behind.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
import re
import sys
import time
from pathlib import Path

import httpx2

from sala_export.machine import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.passkey_text import WORDS, passkey_text, passkey_text_bundle, question
from support.serve_process import server_process

MOST_BODY = 200_000
KINDS = {"whole": 40, "stream": 30, "slow": 5, "leave": 10, "garbage": 10, "oversized": 5}
"""What clients do, and how often of a hundred times."""
_CHAT = "/v1/chat/completions"
_BUSY_SECONDS = 0.2
_ENOUGH_SECONDS = 30.0
_SETTLED_SECONDS = 2.0


class Load:
    """Clients, and what they have seen."""

    def __init__(self, url: str, process: int, *, requests: int, clients: int, seed: int) -> None:
        self._url = url
        self._files = Path("/proc") / str(process)
        self._requests = requests
        self._clients = clients
        self._chance = random.Random(seed)
        self._left = requests
        self.faults: list[str] = []
        self.seconds: list[float] = []
        """Of chats whose answers were read at once."""
        self.kinds: collections.Counter[str] = collections.Counter()
        self.waits = 0
        """Times that a client was told to try again."""
        self.early: int | None = None
        """Bytes of memory at the end of the first tenth."""
        self.descriptors = (0, 0)
        """Of the server, behind its first answer and at the end, when no client is connected."""

    async def run(self) -> None:
        """Let all clients send their requests, and look at what stays behind."""
        timeout = httpx2.Timeout(60)
        limits = httpx2.Limits(max_connections=self._clients)
        async with httpx2.AsyncClient(base_url=self._url, timeout=timeout) as client:
            await self._whole(client)
        before = await self._descriptors(0)
        async with httpx2.AsyncClient(base_url=self._url, timeout=timeout, limits=limits) as client:
            await asyncio.gather(*(self._client(client) for _ in range(self._clients)))
            await self._look_at_rest(client)
        self.descriptors = (before, await self._descriptors(before))

    async def _descriptors(self, most: int) -> int:
        """Descriptors of the server, once they are no more than so many, or after a while."""
        end = time.monotonic() + _SETTLED_SECONDS
        while (count := len(list((self._files / "fd").iterdir()))) > most and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return count

    async def _client(self, client: httpx2.AsyncClient) -> None:
        while self._left > 0:
            self._left -= 1
            if self.early is None and self._left <= self._requests * 9 // 10:
                self.early = self._taken()
            kind = self._chance.choices([*KINDS], [*KINDS.values()])[0]
            self.kinds[kind] += 1
            await getattr(self, f"_{kind}")(client)

    def _question(self) -> tuple[dict[str, object], str]:
        """A request, and the right answer."""
        text, needles = passkey_text(self._chance.randint(20, 400), seed=self._chance.randint(0, 300))
        needle = self._chance.choice(needles)
        messages = [{"role": "user", "content": f"{text} {question(needle)}"}]
        return {"model": "model", "messages": messages, "temperature": 0, "max_tokens": 4}, WORDS[needle.value]

    def _check(self, content: str, right: str) -> None:
        if content.split()[:1] != [right]:
            self.faults.append(f"the answer is {content!r}, and {right} is right")

    async def _whole(self, client: httpx2.AsyncClient) -> None:
        request, right = self._question()
        start = time.perf_counter()
        while (answer := await client.post(_CHAT, json=request)).status_code == 429:
            self.waits += 1
            await asyncio.sleep(_BUSY_SECONDS)
        self.seconds.append(time.perf_counter() - start)
        if answer.status_code == 200:
            self._check(answer.json()["choices"][0]["message"]["content"], right)
        else:
            self.faults.append(f"status {answer.status_code}: {answer.text[:200]}")

    async def _streamed(self, client: httpx2.AsyncClient, *, pause: float, most_lines: int | None) -> None:
        request, right = self._question()
        if most_lines is not None:
            request["max_tokens"] = 4000
        start, text, is_busy = time.perf_counter(), "", True
        while is_busy:
            async with client.stream("POST", _CHAT, json={**request, "stream": True}) as answer:
                is_busy = answer.status_code == 429
                lines = 0
                async for line in answer.aiter_lines():
                    lines += 1
                    if lines == most_lines:
                        return
                    text += "".join(re.findall(r'"content":"([^"]*)"', line))
                    await asyncio.sleep(pause)
            if is_busy:
                self.waits += 1
                await asyncio.sleep(_BUSY_SECONDS)
        if not pause:
            self.seconds.append(time.perf_counter() - start)
        self._check(text, right)

    async def _stream(self, client: httpx2.AsyncClient) -> None:
        await self._streamed(client, pause=0.0, most_lines=None)

    async def _slow(self, client: httpx2.AsyncClient) -> None:
        await self._streamed(client, pause=0.05, most_lines=None)

    async def _leave(self, client: httpx2.AsyncClient) -> None:
        await self._streamed(client, pause=0.0, most_lines=self._chance.randint(1, 8))

    async def _garbage(self, client: httpx2.AsyncClient) -> None:
        body = self._chance.randbytes(self._chance.randint(0, 2000))
        await self._refused(client, body, 400)

    async def _oversized(self, client: httpx2.AsyncClient) -> None:
        await self._refused(client, b'{"model": "' + b"x" * MOST_BODY + b'"}', 413)

    async def _refused(self, client: httpx2.AsyncClient, body: bytes, status: int) -> None:
        try:
            answer = await client.post(_CHAT, content=body, headers={"Content-Type": "application/json"})
        except (httpx2.WriteError, httpx2.RemoteProtocolError):
            return  # the server has answered before it has read all, and has closed the connection
        if answer.status_code != status:
            self.faults.append(f"a body that is wrong got status {answer.status_code}, not {status}")

    def _taken(self) -> int:
        """Bytes of memory of the server."""
        resident = re.search(r"VmRSS:\s+(\d+) kB", (self._files / "status").read_text())
        assert resident is not None
        return int(resident[1]) << 10

    async def _look_at_rest(self, client: httpx2.AsyncClient) -> None:
        end = time.monotonic() + _ENOUGH_SECONDS
        while (running := await self._running(client)) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        if running:
            self.faults.append(f"{running:.0f} requests are still there {_ENOUGH_SECONDS:.0f} s after the last client")

    async def _running(self, client: httpx2.AsyncClient) -> float:
        text = (await client.get("/metrics")).text
        return sum(map(float, re.findall(r"^sala_requests_(?:waiting|prefill|generate) (\S+)", text, re.MULTILINE)))

    def described(self) -> list[str]:
        """What was seen, in lines."""
        ordered = sorted(self.seconds)
        quantiles = ", ".join(
            f"{name} {ordered[int(share * (len(ordered) - 1))] * 1000:.0f} ms" for name, share in _QUANTILES
        )
        assert self.early is not None
        return [
            f"{self._requests:,} requests of {self._clients} clients: {dict(sorted(self.kinds.items()))}",
            f"chats that were read at once took {quantiles}. Clients were told {self.waits:,} times to try again",
            f"memory after a tenth {self.early >> 20} MiB, at the end {self._taken() >> 20} MiB; "
            f"descriptors {self.descriptors[0]}, {self.descriptors[1]}",
        ]

    def check_rest(self, most_growth: int) -> None:
        """Count what has stayed behind as a fault. Args: most_growth: bytes that memory may grow."""
        assert self.early is not None
        if (grown := self._taken() - self.early) > most_growth:
            self.faults.append(f"memory has grown by {grown >> 20} MiB")
        if self.descriptors[1] > self.descriptors[0]:
            self.faults.append("descriptors have grown from {} to {}".format(*self.descriptors))


_QUANTILES = (("half of them at most", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("all", 1.0))
_MOST_GROWTH = 96 << 20


def main(arguments: list[str] | None = None) -> int:
    """Run the load and say what was seen. Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="Many clients at one server.")
    parser.add_argument("--requests", type=int, default=10_000, help="Requests of all clients.")
    parser.add_argument("--clients", type=int, default=32, help="Clients that send requests at the same time.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed for what clients do.")
    options = parser.parse_args(arguments)
    print(f"machine: {describe_machine()}")
    with server_process(passkey_text_bundle(), "--max-body", str(MOST_BODY), "--max-waiting", "16") as (url, process):
        load = Load(url, process.pid, requests=options.requests, clients=options.clients, seed=options.seed)
        start = time.monotonic()
        asyncio.run(load.run())
        load.check_rest(_MOST_GROWTH)
        print(*load.described(), f"{time.monotonic() - start:.0f} s in all", sep="\n")
    for fault, times in collections.Counter(load.faults).most_common(20):
        print(f"fault, {times} times: {fault}")
    return 1 if load.faults else 0


if __name__ == "__main__":
    sys.exit(main())
