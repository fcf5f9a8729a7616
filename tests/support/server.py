"""A server in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai

import sala_export
from sala_export.runtime.state_store import StateStore
from sala_export.serving.run import Server, reserve, serve, url_of
from sala_export.serving.service import Service
from sala_export.serving.settings import Settings

MODEL = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningServer:
    """A server that clients can reach."""

    url: str
    """Without a path."""
    service: Service
    end: Callable[[], None]
    """Ask it to end."""


@contextmanager
def running_server(
    bundle: Path, settings: Settings | None = None, *, store: StateStore | None = None, drain_seconds: int = 5
) -> Iterator[RunningServer]:
    """Serve a bundle under the name `model`, on a free port, until the block is left."""
    settings = settings or Settings(model_names=(MODEL,))
    is_ready = threading.Event()
    raised: list[BaseException] = []
    servers: list[Server] = []

    def on_ready(server: Server) -> None:
        servers.append(server)
        is_ready.set()

    with reserve("127.0.0.1", 0) as listener:
        model = sala_export.load(bundle, threads=2)

        def run() -> None:
            try:
                asyncio.run(
                    serve(model, settings, listener, store=store, drain_seconds=drain_seconds, on_ready=on_ready)
                )
            except BaseException as error:
                raised.append(error)
            finally:
                is_ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            is_ready.wait()
            if raised:
                raise raised[0]
            yield RunningServer(url=url_of(listener), service=servers[0].service, end=servers[0].end)
        finally:
            for server in servers:
                server.end()
            thread.join()
    if raised:
        raise raised[0]


def client_of(server: RunningServer, **options: object) -> openai.OpenAI:
    """The official client, which tries nothing twice."""
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, **options})
