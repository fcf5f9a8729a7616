"""How a context comes about: its text is encoded as it arrives, then read, and at last it gets its name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import StateError
from .answers import AnswerRequest, Usage
from .contexts import deleted
from .errors import ApiError
from .events import Progress

if TYPE_CHECKING:
    from .contexts import Contexts, NamedContext
    from .contexts_prompts import DocumentEncoder
    from .settings import Caller

logger = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 16
"""Text is encoded in pieces of this size, however small those are that arrive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How far a context has been read."""

    tokens: int
    processed: int
    cached: int
    """Those of the processed ones that were read before."""
    seconds: float
    """Since the reading began."""

    @property
    def tokens_per_second(self) -> float:
        """The rate so far, without what was read before."""
        return (self.processed - self.cached) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far. None while there is none."""
        rate = self.tokens_per_second
        return (self.tokens - self.processed) / rate if rate > 0 else None


async def receive_text(
    contexts: Contexts, caller: Caller, context: NamedContext, encoder: DocumentEncoder, pieces: AsyncIterator[bytes]
) -> None:
    """Encode a text as it arrives. It is never held.

    Raises: ApiError if it is no UTF-8, is empty, or has too many tokens; what `pieces` raises.
    """
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= _PIECE_BYTES:
            await _encode(contexts, caller, context, encoder, bytes(waiting))
            waiting.clear()
    await _encode(contexts, caller, context, encoder, bytes(waiting))
    ids = await asyncio.to_thread(encoder.finish)
    contexts.grow(caller, context, len(ids))
    context.ids = ids


async def _encode(
    contexts: Contexts, caller: Caller, context: NamedContext, encoder: DocumentEncoder, data: bytes
) -> None:
    await asyncio.to_thread(encoder.push, data)
    contexts.grow(caller, context, encoder.tokens)
    most = contexts.max_waiting_bytes
    if encoder.waiting_bytes > most:
        raise ApiError(
            413,
            f"more than {most} bytes of the text come without a place where it can be cut, and --max-body allows no "
            "more: send a text with white space or shorter words",
            code="too_large",
        )


async def read(contexts: Contexts, context: NamedContext) -> AsyncGenerator[Reading]:
    """Read a context whose text has arrived, and yield how far it is. At the end it is ready.

    Closing this ends the reading. What has been read by then stays as a kept context without a name.
    Raises: ApiError if there is no room for the context, or if it was deleted; what answers raise.
    """
    if contexts.backing is not None:
        size = contexts.model.state_bytes(len(context.ids))
        await _of_store(asyncio.to_thread(contexts.backing.named.require_room, size))
    if context.is_deleted:
        raise deleted(context)
    context.held = contexts.kept.hold(context.ids)
    follower = _Follower()
    context.reading = asyncio.create_task(_read(contexts, context, follower))
    context.reading.add_done_callback(lambda _: follower.tell(None))
    try:
        async for reading in follower.news(context.reading):
            yield reading
        if context.reading.cancelled():
            raise deleted(context)
        context.reading.result()
    finally:
        await contexts.end_reading(context)


class _Follower:
    """Hands the last news from a task to one who waits for them."""

    def __init__(self) -> None:
        self._last: Reading | None = None
        self._has_changed = asyncio.Event()

    def tell(self, reading: Reading | None) -> None:
        """Give news. None: there are none, but the task has ended."""
        self._last = reading or self._last
        self._has_changed.set()

    async def news(self, task: asyncio.Task[None]) -> AsyncGenerator[Reading]:
        """Yield the news until the task has ended, without those that are no news any more."""
        while True:
            last, self._last = self._last, None
            if last is not None:
                yield last
            elif task.done():
                return
            else:
                await self._has_changed.wait()
                self._has_changed.clear()


async def _read(contexts: Contexts, context: NamedContext, follower: _Follower) -> None:
    usage, start = Usage(prompt_tokens=len(context.ids)), time.monotonic()
    request = AnswerRequest(ids=context.ids, options=[{"max_new_tokens": 0, "stop_tokens": []}])
    async with contexts.answers.answering(request, usage) as events:
        async for event in events:
            if isinstance(event, Progress):
                context.processed = event.processed
                seconds = time.monotonic() - start
                follower.tell(
                    Reading(tokens=event.total, processed=event.processed, cached=event.cached, seconds=seconds)
                )
    await contexts.answers.settle()
    if context.held is None or context.held.kept is None:
        raise ApiError(
            503,
            f"the context {context.name!r} has been read, and there is no memory to keep it: delete others",
            kind="server_error",
            code="out_of_memory",
        )
    context.is_read = True
    await _of_store(contexts.complete(context))


async def _of_store(work: Awaitable[None]) -> None:
    """Do what a store may refuse. The reason goes to the log, because it names paths of this machine.

    Raises: ApiError.
    """
    try:
        await work
    except StateError as error:
        logger.warning("a context was not stored: %s", error)
        raise ApiError(
            503,
            "the state store of this server has no room for the context, or cannot be written: delete other contexts, "
            "or ask who runs the server, whose log tells more",
            kind="server_error",
            code="store_failed",
        ) from None
