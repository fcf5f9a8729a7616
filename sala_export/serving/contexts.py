"""Contexts by name: a text is read once, and any number of conversations go on from its end.

A context belongs to the key that made it. With a state store it outlives the process. The store then tells which
contexts there are, also those that another server has put there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StateError
from .contexts_prompts import DocumentEncoder, ReadDocument
from .errors import ApiError, invalid
from .kept import Held, Ids

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.state_index import NamedState
    from ..runtime.state_store import StateStore
    from .answers import Answers
    from .kept import KeptContexts
    from .prompts import Prompts
    from .settings import Caller

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NO_IDS = np.empty(0, np.int32)
_ANSWER_TOKENS = 1024
"""Room that a context leaves for a question and its answer, but no more than a quarter of all."""
_NOTE_FIELDS = {"id", "system", "front"}


@dataclass(kw_only=True, slots=True, eq=False)
class NamedContext:
    """A context with a name."""

    id: str
    owner: str
    """As in `Caller`."""
    name: str
    created: int
    """In seconds since 1970, in UTC."""
    system: str | None
    """The system message in front of the text."""
    front: str = ""
    """As in `ReadDocument`."""
    tokens: int = 0
    """So far, while the text arrives."""
    processed: int = 0
    """Tokens that have been read."""
    is_ready: bool = False
    ids: Ids = field(default_factory=lambda: _NO_IDS)
    """int32 [tokens]. Of a context from the store, none until somebody asks about it."""
    held: Held | None = None
    reading: asyncio.Task[None] | None = None
    is_read: bool = False
    """All of it has been read, and nothing ends its reading any more."""
    is_deleted: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What no two contexts have in common."""
        return self.owner, self.name

    def note(self) -> str:
        """What the store keeps with it."""
        return json.dumps({"id": self.id, "system": self.system, "front": self.front})

    def document(self) -> ReadDocument:
        """What conversations go on from."""
        return ReadDocument(name=self.name, ids=self.ids, system=self.system, front=self.front)


class Contexts:
    """The contexts with names. Of one event loop."""

    def __init__(
        self,
        model: Model,
        prompts: Prompts,
        answers: Answers,
        kept: KeptContexts,
        store: StateStore | None,
        *,
        max_waiting_bytes: int,
    ) -> None:
        """Args: max_waiting_bytes: of a text that wait for a place where it can be cut."""
        self.model = model
        self.prompts = prompts
        self.answers = answers
        self.kept = kept
        self.backing = store
        self.max_waiting_bytes = max_waiting_bytes
        room = answers.max_context
        self.max_tokens = room - min(_ANSWER_TOKENS, room // 4)
        """Most tokens of a context."""
        self._ready: dict[tuple[str, str], NamedContext] = {}
        self._reading: dict[tuple[str, str], NamedContext] = {}
        self._names_lock = asyncio.Lock()
        """Held by who gives a name in the store, or takes one away."""
        self._leaving: tuple[str, str] | None = None
        """The one whose name is being taken away."""
        self._changes = 0
        """Counts what this server has changed, so that an older look at the store is not taken for a newer one."""

    def __len__(self) -> int:
        return len(self._ready)

    async def refresh(self) -> None:
        """Look what the store has by now.

        Raises: StateError if it is of another model or precision, or cannot be used.
        """
        if self.backing is None:
            return
        changes = -1
        while changes != self._changes:
            changes = self._changes
            found = await asyncio.to_thread(self.backing.named.all, self.model)
        # Whose name is being given or taken away now, the store tells otherwise than it will.
        moving = {context.key for context in self._reading.values() if context.is_read} | {self._leaving}
        contexts = (context for each in found if (context := _stored_context(each)) is not None)
        stored = {context.key: context for context in contexts if context.key not in moving}
        for key, context in [*self._ready.items()]:
            if key not in moving and (key not in stored or stored[key].id != context.id):
                self._let_go(context)
                del self._ready[key]
        self._ready = stored | self._ready

    async def all(self, caller: Caller) -> list[NamedContext]:
        """The contexts of one owner, the oldest first. One that is being read in the place of another comes, too."""
        await self.refresh()
        return sorted(self._of(caller), key=lambda context: context.created)

    async def find(self, caller: Caller, name: str) -> NamedContext:
        """A context, or if there is none the one that is being read. Raises: ApiError if there is neither."""
        require_name(name)
        await self.refresh()
        key = (caller.owner, name)
        context = self._ready.get(key) or self._reading.get(key)
        if context is None:
            raise ApiError(
                404,
                f"there is no context {name!r}: make it with POST /v1/contexts?name={name}",
                param="context",
                code="context_not_found",
            )
        return context

    async def document(self, caller: Caller, name: str) -> ReadDocument:
        """What a conversation goes on from.

        Raises: ApiError if there is no such context, if it is still being read, or if its files in the store are
            damaged.
        """
        context = await self.find(caller, name)
        if not context.is_ready:
            raise ApiError(
                409,
                f"the context {name!r} is being read: ask again when it is ready",
                param="context",
                code="context_not_ready",
                retry_after=5,
            )
        if not len(context.ids):
            ids = await self._stored_ids(context)
            if self._ready.get(context.key) is not context:
                raise _lost(context)
            if context.held is None:
                context.ids, context.held = ids, self.kept.hold(ids, is_stored=True)
        return context.document()

    async def delete(self, caller: Caller, name: str) -> NamedContext:
        """Forget a context, and end its reading if it is being read. Returns it. Raises: ApiError if there is none."""
        found = await self.find(caller, name)
        if (reading := self._reading.get(found.key)) is not None:
            reading.is_deleted = True
            await self.end_reading(reading)
            await self._forget(reading)
        async with self._names_lock:
            if (ready := self._ready.pop(found.key, None)) is not None:
                self._leaving = ready.key
                try:
                    await self._forget(ready)
                    if self.backing is not None:
                        await asyncio.to_thread(self.backing.named.delete, ready.owner, ready.name)
                finally:
                    self._leaving = None
                    self._changes += 1
        return found

    def reserve(
        self, caller: Caller, name: str, encoder: DocumentEncoder, system: str | None, *, replace: bool
    ) -> NamedContext:
        """Begin a context. Its name is taken from now on, and its tokens count.

        Args: replace: there may be a context of this name, whose place it takes when it is ready.
        Raises: ApiError if the name is taken, or if the owner has as many contexts as the quota allows.
        """
        key = (caller.owner, name)
        if key in self._reading:
            raise _exists(f"a context {name!r} is being read: wait for it, or delete it")
        if key in self._ready and not replace:
            raise _exists(f"there is a context {name!r}: choose another name, delete it, or replace it (replace=true)")
        most = caller.quota.contexts
        names = {each.name for each in self._of(caller)} | {name}
        if most is not None and len(names) > most:
            raise _quota_used_up(f"this key may have {most} contexts, and has them")
        context = NamedContext(
            id=f"ctx_{uuid.uuid4().hex}",
            owner=caller.owner,
            name=name,
            created=int(time.time()),
            system=system,
            front=encoder.front,
        )
        self._reading[key] = context
        return context

    def grow(self, caller: Caller, context: NamedContext, tokens: int) -> None:
        """Take note that the text of a context has so many tokens.

        Raises: ApiError if they are too many for the server, or for the quota of the owner, or if the context was
            deleted.
        """
        context.tokens = tokens
        if context.is_deleted:
            raise deleted(context)
        if tokens > self.max_tokens:
            raise ApiError(
                413,
                f"the text has more than {self.max_tokens} tokens, which is what fits into a context of this server, "
                "with room for an answer: shorten it, or make several contexts",
                code="context_length_exceeded",
            )
        most = caller.quota.context_tokens
        others = sum(each.tokens for each in self._of(caller) if each.name != context.name)
        if most is not None and others + tokens > most:
            raise _quota_used_up(f"the contexts of this key may have {most} tokens together, and others have {others}")

    async def complete(self, context: NamedContext) -> None:
        """Give a name to what has been read, in the place of an older context of this name.

        Raises: StateError if the store does not take it.
        """
        assert context.held is not None
        async with self._names_lock:
            old = self._ready.get(context.key)
            if self.backing is not None:
                await self.kept.store(context.held, partial(_give_name, context, old is not None))
            self._changes += 1
            context.is_ready = True
            self._ready[context.key] = self._reading.pop(context.key)
            if old is not None:
                await self._forget(old)

    async def end_reading(self, context: NamedContext) -> None:
        """End the reading of a context, unless all has been read. If it is not ready then, its name is free."""
        if context.reading is not None:
            if not context.is_read:
                context.reading.cancel()
            await asyncio.wait([context.reading])
            if not context.is_ready:
                await self.answers.settle()  # what has been read is kept before the name is free
        if self._reading.get(context.key) is context:
            del self._reading[context.key]
        if not context.is_ready:
            self._let_go(context)

    def _of(self, caller: Caller) -> Iterator[NamedContext]:
        for contexts in (self._ready, self._reading):
            yield from (each for (owner, _), each in contexts.items() if owner == caller.owner)

    def _let_go(self, context: NamedContext) -> None:
        if context.held is not None:
            self.kept.release(context.held)
            context.held = None

    async def _forget(self, context: NamedContext) -> None:
        """Free the memory that a context takes."""
        self._let_go(context)
        if len(context.ids):  # else no conversation has gone on from it here
            await self.answers.settle()
            await self.kept.forget(context.ids)

    async def _stored_ids(self, context: NamedContext) -> Ids:
        assert self.backing is not None
        try:
            ids = await asyncio.to_thread(self.backing.named.token_ids, context.owner, context.name)
        except StateError as error:
            logger.warning("the context %s is damaged: %s", context.id, error)
            raise ApiError(
                500,
                f"the context {context.name!r} is damaged: delete it and send its text again",
                kind="server_error",
                param="context",
                code="context_damaged",
            ) from None
        if ids is None:
            raise _lost(context)
        return ids


def require_name(name: str) -> None:
    """Raises: ApiError for what is no name of a context."""
    if not NAME.fullmatch(name):
        raise invalid(
            "name", f"{name[:200]!r} is no name of a context: use 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'"
        )


def deleted(context: NamedContext) -> ApiError:
    """The answer to who sent a context that somebody has deleted meanwhile."""
    return ApiError(409, f"the context {context.name!r} was deleted while it was being read", code="context_deleted")


def _lost(context: NamedContext) -> ApiError:
    return ApiError(404, f"there is no context {context.name!r} any more", param="context", code="context_not_found")


def _exists(what: str) -> ApiError:
    return ApiError(409, what, param="name", code="context_exists")


def _quota_used_up(what: str) -> ApiError:
    return ApiError(403, f"{what}: delete a context, or ask for a larger quota", code="quota_exceeded")


def _give_name(context: NamedContext, replace: bool, store: StateStore, ids: Ids) -> None:
    store.named.add(*context.key, ids, note=context.note(), created=context.created, replace=replace)


def _stored_context(named: NamedState) -> NamedContext | None:
    """A context as the store has it. None for a name that something else has given."""
    note = _parsed(named.note)
    if note is None:
        return None
    return NamedContext(
        id=note["id"],
        owner=named.owner,
        name=named.name,
        created=named.created,
        system=note["system"],
        front=note["front"],
        tokens=named.position,
        processed=named.position,
        is_ready=True,
    )


def _parsed(note: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(note)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and fields.keys() == _NOTE_FIELDS else None
