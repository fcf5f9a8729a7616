"""Contexts that stay when their answers have ended, so that no prompt is read twice.

A Lightning state belongs to one position, so a context can be entered again only where it keeps a checkpoint. A request
begins with a fork of the context whose last usable checkpoint lies furthest within its prompt.

A context that was read sparsely is of no use to a prompt that is attended densely, nor the other way round: the same
prompt gives the same answer, whatever was asked before.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError, SalaError

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.session import Session
    from ..runtime.state_store import StateStore

Ids = NDArray[np.int32]

logger = logging.getLogger(__name__)

LEAST_TOKENS = 32
"""A context of fewer tokens is not kept: it is read again in no time."""
_MARGIN_TOKENS = 512
"""How far before the end of a long prompt a checkpoint is kept: the next question about the same text is shorter."""


@dataclass(slots=True, eq=False)
class Kept:
    """A context that nobody draws from."""

    session: Session
    tokens: Ids
    """int32 [tokens that have run]"""
    positions: list[int]
    """Where a fork can begin, in order."""
    is_sparse: bool
    last_used: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who works on the session."""

    def reusable(self, ids: Ids, *, is_sparse: bool) -> int:
        """How many of these tokens need not be read again."""
        first = self.positions[0]
        if is_sparse != self.is_sparse or not np.array_equal(ids[:first], self.tokens[:first]):
            return 0
        common = common_length(ids, self.tokens)
        return max(position for position in self.positions if position <= common)


@dataclass(frozen=True, slots=True)
class Begun:
    """A session whose context begins a prompt."""

    session: Session
    cached_tokens: int
    """Tokens of the prompt that the session holds."""
    is_sparse: bool
    checkpoints: list[int]
    """Where the session should keep checkpoints while it reads the rest."""


class KeptContexts:
    """The contexts that a server keeps, in memory and, if it has a store, on disk. Of one event loop."""

    def __init__(
        self,
        model: Model,
        *,
        store: StateStore | None,
        max_contexts: int,
        max_cache_bytes: int | None,
        max_context: int,
    ) -> None:
        """Args: max_contexts: that stay in memory; max_cache_bytes: of all sessions of the model. None: no limit."""
        self._model = model
        self._store = store
        self._max_contexts = max_contexts
        self._max_cache_bytes = max_cache_bytes
        self._max_context = max_context
        self._kept: list[Kept] = []
        self._clock = itertools.count()
        self._saves: set[asyncio.Task[None]] = set()
        self._store_lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    async def begin(self, ids: Ids, max_new_tokens: int) -> Begun:
        """A session that holds as much of a prompt as is kept. Others go, so that the rest and an answer have room.

        Raises: what `Model.session`, `Session.fork` and `Model.restore_longest` raise.
        """
        is_sparse = len(ids) >= self._model.dense_len
        found, cached = self._longest(ids, is_sparse=is_sparse)
        stored = 0
        if self._store is not None and is_sparse and cached < len(ids):
            stored = await asyncio.to_thread(self._store.longest, self._model, ids)
        if stored > cached and stored >= self._model.dense_len:
            session = await self._with_room(lambda: self._restored(ids[:stored]), spared=None)
        elif found is not None:
            session = await self._with_room(lambda: self._forked(found, cached), spared=found)
        else:
            session = self._model.session(max_context=self._max_context)
        begun = session.position
        self._make_room(session, len(ids) - begun + max_new_tokens)
        return Begun(session, begun, is_sparse, self._checkpoints(ids, begun, is_sparse=is_sparse))

    async def keep(self, session: Session, *, is_sparse: bool) -> None:
        """Keep a session whose answer has ended, in place of those whose contexts it continues."""
        if session.past_length < LEAST_TOKENS:
            return
        try:
            await asyncio.to_thread(session.checkpoint)
        except RunError:  # a step has failed, and the context is lost
            return
        tokens = session.tokens[: session.past_length]
        kept = Kept(session, tokens, session.checkpoints, is_sparse, next(self._clock))
        self._kept = [each for each in self._kept if not _continues(kept, each)]
        self._kept.append(kept)
        while len(self._kept) > self._max_contexts and self._evict(spared=kept):
            continue
        if self._store is not None and is_sparse:
            task = asyncio.create_task(self._save(kept))
            self._saves.add(task)
            task.add_done_callback(self._saves.discard)

    def evict(self) -> bool:
        """Let go of the context that was used longest ago. False if there is none."""
        return self._evict(spared=None)

    async def close(self) -> None:
        """Wait for what is being saved, and let go of all contexts."""
        while self._saves:
            await asyncio.wait(self._saves)
        self._kept.clear()

    def _longest(self, ids: Ids, *, is_sparse: bool) -> tuple[Kept | None, int]:
        best, most = None, 0
        for kept in self._kept:
            if (position := kept.reusable(ids, is_sparse=is_sparse)) > most:
                best, most = kept, position
        return best, most

    async def _with_room(self, make: Callable[[], Awaitable[Session]], *, spared: Kept | None) -> Session:
        """Make a session, without contexts for which there is no memory beside it."""
        while True:
            try:
                return await make()
            except RunError as error:
                if error.code != "OutOfMemory" or not self._evict(spared=spared):
                    raise

    async def _restored(self, ids: Ids) -> Session:
        store = self._store
        assert store is not None
        return await asyncio.to_thread(self._model.restore_longest, store, ids, max_context=self._max_context)

    async def _forked(self, kept: Kept, position: int) -> Session:
        kept.last_used = next(self._clock)

        def fork() -> Session:
            session = kept.session.fork()
            session.rewind(position)
            return session

        async with kept.lock:
            return await asyncio.to_thread(fork)

    def _checkpoints(self, ids: Ids, begun: int, *, is_sparse: bool) -> list[int]:
        """Where the next prompt may leave this one: where the last one did, and shortly before the end."""
        if not is_sparse:
            return []
        places = {max((common_length(ids, kept.tokens) for kept in self._kept), default=0), len(ids) - _MARGIN_TOKENS}
        return sorted(place for place in places if max(begun, self._model.dense_len) < place < len(ids))

    def _make_room(self, session: Session, tokens: int) -> None:
        """Let go of contexts until a session can take so many tokens more, or until none is left."""
        tokens = min(tokens, session.max_context - session.position)
        while not self._has_room(session, tokens) and self._evict(spared=None):
            continue

    def _has_room(self, session: Session, tokens: int) -> bool:
        limit = self._max_cache_bytes
        if limit is not None and self._model.cache_bytes + self._model.state_bytes(tokens) > limit:
            return False
        try:
            session.require_room(tokens)
        except RunError as error:
            if error.code != "OutOfMemory":
                raise
            return False
        return True

    def _evict(self, *, spared: Kept | None) -> bool:
        unused = [kept for kept in self._kept if kept is not spared and not kept.lock.locked()]
        if not unused:
            return False
        self._kept.remove(min(unused, key=lambda kept: kept.last_used))
        return True

    async def _save(self, kept: Kept) -> None:
        """Save a context, so that it outlives the process. A fork is saved, and others can be made meanwhile."""
        store = self._store
        assert store is not None
        async with self._store_lock:
            try:
                async with kept.lock:
                    copy = await asyncio.to_thread(kept.session.fork)
                await asyncio.to_thread(store.save, copy)
                kept.session.take_stored(copy)
            except SalaError as error:
                logger.warning("a context of %d tokens was not saved: %s", len(kept.tokens), error)


def common_length(a: Ids, b: Ids) -> int:
    """How many tokens two prompts begin with alike."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _continues(longer: Kept, shorter: Kept) -> bool:
    """Whether a context offers all that another does."""
    return (
        longer.is_sparse == shorter.is_sparse
        and not shorter.lock.locked()
        and set(shorter.positions) <= set(longer.positions)
        and common_length(longer.tokens, shorter.tokens) == len(shorter.tokens)
    )
