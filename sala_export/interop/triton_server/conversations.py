"""Conversations: what clients call sequences. Each goes on from where its last answer ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import SessionError
from ...serving.kept import Ids

if TYPE_CHECKING:
    from ...serving.service import Service


@dataclass(slots=True, eq=False)
class ConversationState:
    """What there is of a conversation. The state itself is the kept context of its tokens."""

    ids: Ids = field(default_factory=lambda: np.zeros(0, np.int32))
    """All tokens so far, int32 [tokens]"""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """As chat templates take them. Empty if its turns are texts."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the turn that runs. The next ones wait in their order."""
    last_used: float = field(default_factory=time.monotonic)
    replaces: ConversationState | None = None
    """One of the same id, which ends when this one begins."""
    has_ended: bool = False


class Conversations:
    """The conversations of a model. Of one event loop."""

    def __init__(self, service: Service, *, max_idle: float) -> None:
        """Args: max_idle: seconds after whose end a conversation that nobody continues ends."""
        self._service = service
        self._max_idle = max_idle
        self._open: dict[Hashable, ConversationState] = {}

    def __len__(self) -> int:
        return len(self._open)

    def find(self, name: int | str, *, is_first: bool) -> ConversationState:
        """The conversation of this id, or a new one for its first request.

        Raises: SessionError if there is none that the request could continue.
        """
        key = (type(name), name)  # 7 and "7" are two
        if is_first:
            self._open[key] = ConversationState(replaces=self._open.get(key))
        if key not in self._open:
            raise SessionError(
                f"there is no conversation {name!r}: it has ended, nobody continued it for {self._max_idle:g} s, or it "
                "never began. Send its first request with sequence_start"
            )
        found = self._open[key]
        found.last_used = time.monotonic()
        return found

    @asynccontextmanager
    async def turn(self, conversation: ConversationState, *, is_last: bool) -> AsyncIterator[None]:
        """Wait for the earlier turns. At the end of the last one the conversation ends, whether it succeeds or not.

        Raises: SessionError if an earlier turn was the last.
        """
        async with conversation.lock:
            if conversation.has_ended:
                raise SessionError("the conversation has ended: begin another with sequence_start")
            try:
                if conversation.replaces is not None:
                    replaced, conversation.replaces = conversation.replaces, None
                    await self.end(replaced)
                yield
            finally:
                conversation.last_used = time.monotonic()
                if is_last or conversation.has_ended:  # replaced while it ran: it has more tokens now
                    await self.end(conversation)

    async def end(self, ended: ConversationState) -> None:
        """Forget a conversation, and let its state go but for what it has in common with others."""
        ended.has_ended = True
        self._open = {key: each for key, each in self._open.items() if each is not ended}
        await self._service.answers.settle()
        await self._service.kept.forget(ended.ids, but=[each.ids for each in self._open.values() if len(each.ids)])

    async def end_idle(self) -> None:
        """End those that nobody has continued for too long."""
        latest = time.monotonic() - self._max_idle
        for each in [*self._open.values()]:
            if each.last_used < latest and not each.lock.locked():
                await self.end(each)
