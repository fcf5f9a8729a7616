"""Contexts that stay when their answers have ended, so that no prompt is read twice.

A Lightning state belongs to one position, so a context can be entered again only where it keeps a checkpoint. A request
begins with a fork of the context whose last usable checkpoint lies furthest within its prompt.

Those that are held stay for as long as somebody holds them. If they have been stored, they may leave the memory, and
come back from the store.

A context that was read sparsely is of no use to a prompt that is attended densely, nor the other way round: the same
prompt gives the same answer, whatever was asked before.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError, SalaError, StateError
from ..specs import format_bytes
from .errors import ApiError
from .threads import in_thread

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
RESTORED_PER_READ = 32
"""So many tokens are restored in the time in which one is read. Less gain is not worth a second copy in memory."""


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
    forks: int = 0
    """Sessions that run and share its memory."""
    is_forgotten: bool = False
    """It must not come into the store any more."""
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is in the store, or will not come there."""

    def reusable(self, ids: Ids, *, is_sparse: bool) -> int:
        """How many of these tokens need not be read again."""
        first = self.positions[0]
        if is_sparse != self.is_sparse or not np.array_equal(ids[:first], self.tokens[:first]):
            return 0
        common = common_length(ids, self.tokens)
        return max(position for position in self.positions if position <= common)


@dataclass(slots=True, eq=False)
class Held:
    """A context that stays."""

    ids: Ids
    """int32 [tokens]"""
    kept: Kept | None = None
    """None before it has been read, and after it was let go because the store has it."""
    is_stored: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who brings it back from the store."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A session whose context begins a prompt."""

    session: Session
    cached_tokens: int
    """Tokens of the prompt that the session holds."""
    is_sparse: bool
    checkpoints: list[int]
    """Where the session should keep checkpoints while it reads the rest."""
    source: Kept | None = None
    """The context that the session is a fork of. It shares its memory, so letting go of it would free none."""


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
        keeps_unsaved: bool,
    ) -> None:
        """Args: max_contexts: that stay in memory; max_cache_bytes: of all sessions of the model. None: no limit.
        keeps_unsaved: a context leaves the memory only when the store has it.
        """
        self._keeps_unsaved = keeps_unsaved
        self._model = model
        self._store = store
        self._max_contexts = max_contexts
        self._max_cache_bytes = max_cache_bytes
        self._max_context = max_context
        self._kept: list[Kept] = []
        self._held: list[Held] = []
        self._clock = itertools.count()
        self._unsaved: list[Kept] = []
        """Contexts that are to be saved, in their order. One that goes meanwhile is not."""
        self._saver: asyncio.Task[None] | None = None
        self._store_lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    async def begin(self, ids: Ids, max_new_tokens: int, *, is_fresh: bool = False) -> Begun:
        """A session that holds as much of a prompt as is kept. Others go, so that the rest and an answer have room.

        Args: is_fresh: the session holds nothing, because all of the prompt has to be read.
        Raises: what `Model.session`, `Session.fork` and `Model.restore_longest` raise.
        """
        is_sparse = len(ids) >= self._model.dense_len
        session, source = (None, None) if is_fresh else await self._continued(ids, is_sparse=is_sparse)
        session = session or self._model.session(max_context=self._max_context)
        begun = session.position
        checkpoints = self._checkpoints(ids, begun, is_sparse=is_sparse)
        self._make_room(session, len(ids) - begun + max_new_tokens)
        return Begun(session, begun, is_sparse, checkpoints, source)

    async def _continued(self, ids: Ids, *, is_sparse: bool) -> tuple[Session | None, Kept | None]:
        """A session that holds as much of a prompt as is kept, and the context in memory that it is a fork of, if any.

        No session if nothing is kept.
        """
        await self._bring_back(ids, is_sparse=is_sparse)
        found, cached = self._longest(ids, is_sparse=is_sparse)
        session = await self._from_store(ids, cached) if is_sparse else None
        if session is not None or found is None:
            return session, None
        found.forks += 1
        try:
            return await self._with_room(lambda: self._forked(found, cached), spared=found), found
        except BaseException:
            found.forks -= 1
            raise

    def require_fit(self, tokens: int) -> None:
        """Raises: ApiError if a context of so many tokens would not fit even if there were no other."""
        limit = self._max_cache_bytes
        size = self._model.state_bytes(min(tokens, self._max_context))
        if limit is not None and size > limit:
            raise ApiError(
                400,
                f"the prompt and its answer of {tokens} tokens take {format_bytes(size)}, and the server has "
                f"{format_bytes(limit)} for caches (--max-cache): shorten the prompt or ask for less",
                code="context_length_exceeded",
            )

    async def keep(self, begun: Begun) -> Kept | None:
        """Keep a session whose answer has ended, in place of those whose contexts it continues.

        Returns: what is kept and is about to be saved. None if nothing is.
        """
        session, is_sparse = begun.session, begun.is_sparse
        if begun.source is not None:
            begun.source.forks -= 1
        tokens = session.tokens[: session.past_length]
        waiting = [each for each in self._held if each.kept is None and np.array_equal(each.ids, tokens)]
        if (len(tokens) < LEAST_TOKENS or self._max_contexts == 0) and not waiting:
            return None
        try:
            await in_thread(session.checkpoint)
        except SalaError as error:  # a step has failed, for example, and the context is lost
            logger.info("a context of %d tokens is not kept: %s", len(tokens), error)
            return None
        kept = Kept(session, tokens, session.checkpoints, is_sparse, next(self._clock))
        for held in waiting:
            held.kept = kept
        for each in [*self._kept]:
            if not self._must_stay(each) and _continues(kept, each):
                self._drop(each)
        self._kept.append(kept)
        self._keep_few(spared=kept)
        if self._store is None or not is_sparse or self._must_stay(kept):
            return None
        self._unsaved.append(kept)
        if self._saver is None or self._saver.done():
            self._saver = asyncio.create_task(self._save_all())
            self._saver.add_done_callback(self._tell_of_fault)
        return kept

    def hold(self, ids: Ids, *, is_stored: bool = False) -> Held:
        """Let the context of these tokens stay when it has been read, until `release`.

        Args: is_stored: the store has it already.
        Raises: ApiError if it has to stay in memory, and there is no room for it beside the others that must.
        """
        if not is_stored:
            self._require_room(len(ids))
        held = Held(ids, is_stored=is_stored)
        self._held.append(held)
        return held

    def release(self, held: Held) -> None:
        """Let a context go when there is need for its room."""
        if held in self._held:
            self._held.remove(held)

    async def store(self, held: Held, name: Callable[[StateStore, Ids], None]) -> None:
        """Save a context that has been read, so that it outlives the process. It may then leave the memory.

        Args: name: gives a name in the store to the state of these tokens. It runs in a thread.
        Raises: StateError if it cannot be saved, and what `name` raises.
        """
        store, kept = self._store, held.kept
        assert store is not None
        assert kept is not None
        async with self._store_lock:
            await self._saved(kept)
            await asyncio.to_thread(name, store, kept.tokens)
        held.is_stored = True

    async def forget(self, ids: Ids, *, but: Sequence[Ids] = ()) -> None:
        """Let go of the context of these tokens, its beginnings and what continues it, but for what is held.

        When this returns, none of them comes into the store any more.
        Args: but: prompts whose contexts, beginnings and continuations stay.
        """
        if len(ids) == 0:  # every context would continue it
            return
        for kept in [*self._kept]:
            if not _is_one_text(kept, ids) or any(each.kept is kept for each in self._held):
                continue
            if not any(_is_one_text(kept, other) for other in but):
                kept.is_forgotten = True
                self._kept.remove(kept)
        async with self._store_lock:  # what is being saved now has been saved
            pass

    def evict(self) -> bool:
        """Let go of the context that was used longest ago. False if there is none."""
        return self._evict(spared=None)

    async def close(self) -> None:
        """Wait for what is being saved, and let go of all contexts."""
        if self._saver is not None:
            await asyncio.wait((self._saver,))
        self._kept.clear()
        self._held.clear()

    async def _bring_back(self, ids: Ids, *, is_sparse: bool) -> None:
        """Restore the held context that begins a prompt, if it has left the memory: others will ask about it, too."""
        _, cached = self._longest(ids, is_sparse=is_sparse)
        gone = [held for held in self._held if held.is_stored and held.kept is None and len(held.ids) > cached]
        fitting = [
            held
            for held in gone
            if is_sparse == (len(held.ids) >= self._model.dense_len) and np.array_equal(ids[: len(held.ids)], held.ids)
        ]
        if not fitting:
            return
        held = max(fitting, key=lambda each: len(each.ids))
        async with held.lock:
            if held.kept is not None:
                return
            self._evict_until(lambda: self._is_within_limit(len(held.ids)))
            session = await self._with_room(lambda: self._restored(held.ids), spared=None)
            # If its files are damaged, the store has given what is left.
            if session.position == len(held.ids) and held in self._held:
                held.kept = Kept(session, held.ids, session.checkpoints, is_sparse, next(self._clock))
                self._kept.append(held.kept)
                self._keep_few(spared=held.kept)

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

    async def _from_store(self, ids: Ids, cached: int) -> Session | None:
        """A session that the store has of a prompt. None if it has not clearly more than `cached` tokens of it."""
        if self._store is None or cached == len(ids):
            return None
        try:
            stored = await asyncio.to_thread(self._store.longest, self._model, ids)
            if stored - cached <= stored // RESTORED_PER_READ or stored < self._model.dense_len:
                return None
            self._evict_until(lambda: self._is_within_limit(stored))
            return await self._with_room(lambda: self._restored(ids[:stored]), spared=None)
        except StateError as error:
            logger.warning("the state store fails, so a prompt is read anew: %s", error)
            return None

    async def _restored(self, ids: Ids) -> Session:
        store = self._store
        assert store is not None
        return await in_thread(self._model.restore_longest, store, ids, max_context=self._max_context)

    async def _forked(self, kept: Kept, position: int) -> Session:
        kept.last_used = next(self._clock)

        def fork() -> Session:
            session = kept.session.fork()
            session.rewind(position)
            return session

        async with kept.lock:
            return await in_thread(fork)

    def _checkpoints(self, ids: Ids, begun: int, *, is_sparse: bool) -> list[int]:
        """Where the next prompt may leave this one: where the last one did, and shortly before the end."""
        if not is_sparse:
            return []
        places = {max((common_length(ids, kept.tokens) for kept in self._kept), default=0), len(ids) - _MARGIN_TOKENS}
        return sorted(place for place in places if max(begun, self._model.dense_len) < place < len(ids))

    def _make_room(self, session: Session, tokens: int) -> None:
        """Let go of contexts until a session can take so many tokens more, or until none is left."""
        tokens = min(tokens, session.max_context - session.position)
        self._evict_until(lambda: self._has_room(session, tokens))

    def _evict_until(self, is_enough: Callable[[], bool]) -> None:
        while not is_enough() and self._evict(spared=None):
            continue

    def _is_within_limit(self, further_tokens: int) -> bool:
        limit = self._max_cache_bytes
        return limit is None or self._model.cache_bytes + self._model.state_bytes(further_tokens) <= limit

    def _require_room(self, tokens: int) -> None:
        """Raises: ApiError if contexts that must stay would take more than there is."""
        size, limit = self._model.state_bytes(tokens), self._max_cache_bytes
        others = sum(self._model.state_bytes(len(each.ids)) for each in self._held if not each.is_stored)
        if limit is not None and others + size > limit:
            raise ApiError(
                503,
                f"the context of {tokens} tokens takes {format_bytes(size)}, and of {format_bytes(limit)} for caches "
                f"other contexts hold {format_bytes(others)}: delete one, or start the server with more --max-cache, "
                "or with --state-store, which lets contexts leave the memory",
                kind="server_error",
                code="out_of_memory",
            )

    def _must_stay(self, kept: Kept) -> bool:
        return any(each.kept is kept and not each.is_stored for each in self._held)

    def _keep_few(self, *, spared: Kept) -> None:
        """Let go of what is more than the server keeps."""
        while sum(not self._must_stay(each) for each in self._kept) > self._max_contexts:
            if not self._evict(spared=spared):
                break

    def _has_room(self, session: Session, tokens: int) -> bool:
        if not self._is_within_limit(tokens):
            return False
        try:
            session.require_room(tokens)
        except RunError as error:
            if error.code != "OutOfMemory":
                raise
            return False
        return True

    def _evict(self, *, spared: Kept | None) -> bool:
        unused = [kept for kept in self._kept if kept is not spared and not self._is_used(kept)]
        if not unused:
            return False
        self._drop(min(unused, key=lambda kept: kept.last_used))
        return True

    def _is_used(self, kept: Kept) -> bool:
        is_awaited = self._keeps_unsaved and kept in self._unsaved
        return is_awaited or kept.forks > 0 or kept.lock.locked() or self._must_stay(kept)

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        if kept in self._unsaved:
            self._unsaved.remove(kept)
            kept.is_settled.set()
        for held in self._held:
            if held.kept is kept:
                held.kept = None

    async def _save_all(self) -> None:
        """Save contexts one by one, so that they outlive the process."""
        while self._unsaved:
            async with self._store_lock:
                kept = self._unsaved.pop(0) if self._unsaved else None
                if kept is None:
                    continue
                try:
                    if not kept.is_forgotten:
                        await self._saved(kept)
                except SalaError as error:
                    logger.warning("a context of %d tokens was not saved: %s", len(kept.tokens), error)
                finally:
                    kept.is_settled.set()

    def _tell_of_fault(self, saver: asyncio.Task[None]) -> None:
        """After a fault of ours, nobody waits in vain for what is not saved."""
        if saver.cancelled() or saver.exception() is None:
            return
        logger.error("contexts were not saved", exc_info=saver.exception())
        while self._unsaved:
            self._unsaved.pop().is_settled.set()

    async def _saved(self, kept: Kept) -> None:
        """Save a fork, so that others can be made meanwhile."""
        store = self._store
        assert store is not None
        async with kept.lock:
            copy = await in_thread(kept.session.fork)
        await in_thread(store.save, copy)
        kept.session.take_stored(copy)


def common_length(a: Ids, b: Ids) -> int:
    """How many tokens two prompts begin with alike."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _is_one_text(kept: Kept, ids: Ids) -> bool:
    """Whether a context is the beginning of a prompt, or the other way round."""
    return common_length(kept.tokens, ids) == min(len(kept.tokens), len(ids))


def _continues(longer: Kept, shorter: Kept) -> bool:
    """Whether a context offers all that another does."""
    return (
        longer.is_sparse == shorter.is_sparse
        and not shorter.lock.locked()
        and set(shorter.positions) <= set(longer.positions)
        and common_length(longer.tokens, shorter.tokens) == len(shorter.tokens)
    )
