"""A server that runs until it is told to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..errors import RequestError
from .app import create_app
from .connections import Connection, ServerConfig
from .service import Service
from .settings import Settings

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.state_store import StateStore

_BACKLOG = 2048


def reserve(host: str, port: int) -> socket.socket:
    """Take the address of a server before a long load, so that no other server can. Clients that connect wait.

    Raises: RequestError if it cannot be taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind, protocol)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(address)
            # Two sockets can be bound to one address. Only one can listen.
            reserved.listen(_BACKLOG)
        except OSError:
            reserved.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"--host {host} --port {port}: {reason}: choose another address") from None
    return reserved


def url_of(listener: socket.socket) -> str:
    """The address that a client on this machine types."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    model: Model,
    settings: Settings,
    listener: socket.socket,
    *,
    store: StateStore | None,
    drain_seconds: int,
    on_ready: Callable[[Server], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM. Then take no new ones, let the others end, and save their contexts.

    Args: listener: as `reserve` gives it; drain_seconds: after which requests are cancelled; on_ready: called when
        clients can connect. The server that it gets can be ended from another thread, too.
    Raises: RequestError if clients cannot connect at the address; and as `Service.open`.
    """
    async with Service.open(model, settings, store=store) as service:
        config = ServerConfig(
            create_app(service),
            settings=settings,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=drain_seconds,
        )
        await Server(config, service, on_ready).serve(sockets=[listener])


class Server(uvicorn.Server):
    """A server that tells when it has begun and when it ends. To be asked to end is no failure."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[Server], None]) -> None:
        super().__init__(config)
        self.service = service
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer. Raises: RequestError if clients cannot connect."""
        try:
            await super().startup(sockets)
        except OSError as error:
            raise RequestError(f"the server cannot listen: {error.strerror or error}: choose another --port") from None
        self._on_ready(self)

    def end(self) -> None:
        """Take no new requests, and end when those that are being answered have. Any thread may call this."""
        self.service.is_draining = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks for the end. The second Ctrl-C does not wait for answers."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.end()
