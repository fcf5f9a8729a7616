"""Conversations with a fleet whose replicas are killed: what is lost, what is read twice, how long turns take.

    python -m benchmarks.fleet [--conversations 1000] [--replicas 4] [--kill-every 20] [--bundle tiny.sala]

Starts `sala_export.fleet.ray:app` on this machine's CPU, with the tiny model if no bundle is named. So many
conversations at a time as `--active` says have turns, with pauses between them. Clients are ordinary: they send a
conversation whole each time, read the answer as a stream, name nothing, and send a turn again if its answer broke off.
Meanwhile one replica after the other is killed with SIGKILL. It counts as a fault if a turn reads again what an ended
turn of its conversation has read, or if it fails five times. A server that has most of a prompt in memory reads the
rest again where restoring would take longer, so a 32nd of the prompt is no fault.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.tables import duration, markdown
from sala_export.machine import describe_machine
from sala_export.serving.kept import RESTORED_PER_READ

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.fleet_process import fleet_process
from support.free_ports import free_ports
from support.text_bundles import tiny_text_bundle

MOST_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5
"""Before a turn is sent again."""
_TURN_SECONDS = 300.0
_TEXT = "It was a dark and stormy night. "


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """An answer that a client has got to its end."""

    first_token: float
    """Seconds from the first attempt on."""
    seconds: float
    attempts: int
    """By the client."""
    tries: int
    """Replicas that were asked in the last attempt."""
    replica: str
    prompt_tokens: int
    cached_tokens: int


class BrokenOffError(Exception):
    """An answer did not come to its end."""


@dataclass(kw_only=True, slots=True)
class Load:
    """Clients of a fleet, and what they have seen."""

    url: str
    replicas: Callable[[], list[int]]
    """Processes that may be killed."""
    conversations: int
    active: int
    turns: int
    kill_every: float
    pause: float
    """Seconds between turns, on average."""
    seed: int = 0
    kills: int = 0
    seconds: float = 0.0
    ended: list[list[Turn]] = field(default_factory=list)
    """Turns of each conversation."""
    faults: list[str] = field(default_factory=list)
    _chance: random.Random = field(default_factory=random.Random)
    _left: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Have all conversations, and kill replicas meanwhile."""
        self._chance.seed(self.seed)
        self._left = [*range(self.conversations)]
        start = time.monotonic()
        killing = asyncio.create_task(self._kill())
        try:
            limits = httpx2.Limits(max_connections=self.active)
            async with httpx2.AsyncClient(base_url=self.url, timeout=_TURN_SECONDS, limits=limits) as client:
                await asyncio.gather(*(self._client(client) for _ in range(self.active)))
        finally:
            killing.cancel()
        self.seconds = time.monotonic() - start

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self.kill_every)
            if alive := await asyncio.to_thread(self.replicas):
                os.kill(self._chance.choice(alive), signal.SIGKILL)
                self.kills += 1

    async def _client(self, client: httpx2.AsyncClient) -> None:
        while self._left:
            await self._converse(client, self._left.pop())

    async def _converse(self, client: httpx2.AsyncClient, number: int) -> None:
        said = f"Story {number}. {_TEXT * self._chance.randint(30, 60)}"
        messages: list[dict[str, str]] = []
        turns: list[Turn] = []
        self.ended.append(turns)
        for _ in range(self.turns):
            messages.append({"role": "user", "content": said})
            try:
                turn, text = await self._turn(client, messages)
            except BrokenOffError as error:
                self.faults.append(f"conversation {number}: {error}")
                return
            messages.append({"role": "assistant", "content": text})
            if turns and not _is_found(turns[-1], turn):
                lost = f"{turn.cached_tokens} of {turns[-1].prompt_tokens} tokens of its last turn were found"
                self.faults.append(f"conversation {number}: {lost}")
            turns.append(turn)
            said = f"{self._chance.randint(0, 999)} and then? "
            await asyncio.sleep(self._chance.expovariate(1 / self.pause))

    async def _turn(self, client: httpx2.AsyncClient, messages: list[dict[str, str]]) -> tuple[Turn, str]:
        start, reason = time.monotonic(), ""
        for attempt in range(1, MOST_ATTEMPTS + 1):
            try:
                return await self._attempt(client, messages, start, attempt)
            except (httpx2.TransportError, BrokenOffError) as error:
                reason = f"{type(error).__name__} {error}"
                await asyncio.sleep(_PAUSE_SECONDS)
        raise BrokenOffError(f"{MOST_ATTEMPTS} attempts failed: {reason}")

    async def _attempt(
        self, client: httpx2.AsyncClient, messages: list[dict[str, str]], start: float, attempt: int
    ) -> tuple[Turn, str]:
        """Raises: BrokenOffError for an answer that is no success, or that has no end."""
        request = {"model": "model", "messages": messages, "max_tokens": 8, "stream": True}
        usage: dict[str, Any] | None = None
        text, first, is_whole = "", 0.0, False
        body = {**request, "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise BrokenOffError(f"status {answer.status_code}: {(await answer.aread())[:200]!r}")
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    is_whole = True
                elif line.startswith("data: "):
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise BrokenOffError(chunk["error"]["message"])
                    usage = chunk.get("usage") or usage
                    for choice in chunk["choices"]:
                        text += choice["delta"].get("content") or ""
                        first = first or (time.monotonic() if choice["delta"].get("content") else 0.0)
        if not is_whole or usage is None:
            raise BrokenOffError("the stream has no end")
        end = time.monotonic()
        turn = Turn(
            first_token=(first or end) - start,
            seconds=end - start,
            attempts=attempt,
            tries=int(answer.headers["x-sala-tries"]),
            replica=answer.headers["x-sala-replica"],
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        )
        return turn, text

    def figures(self) -> dict[str, Any]:
        """What came out, as plain JSON values."""
        turns = [turn for each in self.ended for turn in each]
        later = [(before, turn) for each in self.ended for before, turn in itertools.pairwise(each)]
        moved = [(before, turn) for before, turn in later if before.replica != turn.replica]
        return {
            "conversations": len(self.ended),
            "turns": len(turns),
            "seconds": round(self.seconds, 1),
            "kills": self.kills,
            "faults": len(self.faults),
            "retried_by_the_front": sum(turn.tries > 1 for turn in turns),
            "retried_by_the_client": sum(turn.attempts - 1 for turn in turns),
            "turns_at_another_replica": len(moved),
            "of_these_found_in_the_store": sum(_is_found(before, turn) for before, turn in moved),
            "prompt_tokens": sum(turn.prompt_tokens for turn in turns),
            "cached_tokens": sum(turn.cached_tokens for turn in turns),
            "tokens_read_twice": sum(max(0, before.prompt_tokens - turn.cached_tokens) for before, turn in later),
            "first_token_seconds": _spread([turn.first_token for turn in turns]),
            "first_token_seconds_of_moved": _spread([turn.first_token for _, turn in moved]),
            "turn_seconds": _spread([turn.seconds for turn in turns]),
        }


def _is_found(before: Turn, turn: Turn) -> bool:
    """Whether a turn has found what the one before has read."""
    return before.prompt_tokens - turn.cached_tokens <= before.prompt_tokens // RESTORED_PER_READ


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 90 %, 99 % and largest. None of fewer than two values."""
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=20.0)
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sala-fleet-") as folder:
        given = {
            "bundle": str((options.bundle or tiny_text_bundle()).resolve()),
            "replicas": options.replicas,
            "num_gpus": 0,
            "model_name": "model",
            "state_store": str(Path(folder) / "states"),
            "state_store_bytes": "8G",
        }
        (port,) = free_ports(1)
        with fleet_process(port, given) as fleet:
            load = Load(
                url=fleet.url,
                replicas=fleet.replicas,
                conversations=options.conversations,
                active=options.active,
                turns=options.turns,
                kill_every=options.kill_every,
                pause=options.pause,
                seed=options.seed,
            )
            asyncio.run(load.run())
    return _report(load, as_json=options.json)


def _report(load: Load, *, as_json: bool) -> int:
    figures, machine = load.figures(), describe_machine()
    if as_json:
        print(json.dumps({**figures, "processor": machine.processor, "cores": machine.cores}))
    else:
        rows = [[name.replace("_", " "), _cell(value)] for name, value in figures.items()]
        print(markdown(["", "figure"], rows))
        print(f"{machine.processor}, {machine.cores} cores")
    for fault in load.faults:
        print(f"fault: {fault}")
    return 1 if load.faults else 0


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {duration(each)}" for name, each in value.items())
    return f"{value:,}"


if __name__ == "__main__":
    raise SystemExit(main())
