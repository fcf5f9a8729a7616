"""States of a store that have names. They stay until their names go, whatever else is saved.

A name belongs to an owner, which is any text. Names of several owners do not collide. Two names may be of one state.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.safetensors_header import read_header
from ..errors import StateError
from ..files import OpenedFile
from ..specs import format_bytes
from .prompt_ids import TokenIds, known_ids
from .state_index import IndexedState, NamedState, prefix_hashes

if TYPE_CHECKING:
    from .model import Model
    from .state_store import StateStore


class NamedStates:
    """The states with names of a store. `StateStore.named` makes it.

    For example, keep a book:

        store.save(session)
        store.named.add("me", "book", session.tokens)
        token_ids = store.named.token_ids("me", "book")
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._index = store._index

    def all(self, model: Model) -> list[NamedState]:
        """All names, in the order in which they were given.

        Raises: StateError if the store is of another model or precision, or cannot be used.
        """
        self._index.require_owner(model.fingerprint, model.precision)
        return self._index.names()

    def add(
        self,
        owner: str,
        name: str,
        token_ids: TokenIds,
        *,
        note: str = "",
        created: int | None = None,
        replace: bool = False,
    ) -> None:
        """Give a name to the state of these tokens.

        When this returns, the name outlives a kill and a loss of power.

        Args:
            note: any text that you want to keep with it.
            created: what is to be told as the time when the name was given, in seconds since 1970. By default now.
            replace: if the owner has given this name to another state, that one goes as by `delete`.
        Raises: StateError if there is no state of these tokens, or if the name is taken.
        """
        ids = known_ids(token_ids)
        position = len(ids)
        when = int(time.time()) if created is None else created
        named = NamedState(owner=owner, name=name, position=position, created=when, note=note)
        before = self._index.give_name(named, prefix_hashes(ids, [position])[position], replace=replace)
        if before is not None:
            with self._store._locked(fcntl.LOCK_EX):
                self._drop(before)

    def require_room(self, size: int) -> None:
        """Refuse one more state of `size` bytes with a name, if there is no room for it beside the others.

        Raises: StateError that says how much they take.
        """
        limit = self._store.max_bytes
        taken = 0 if limit is None else self._index.named_bytes()
        if limit is not None and taken + size > limit:
            raise StateError(
                f"{self._store.path} has a limit of {format_bytes(limit)}, states with names take "
                f"{format_bytes(taken)} of it, and this one takes {format_bytes(size)}: delete one of them, or choose "
                "a larger limit"
            )

    def token_ids(self, owner: str, name: str) -> NDArray[np.int32] | None:
        """The tokens of a state with a name, int32 [position]. None if there is no such name.

        Raises: StateError if a file of the state is missing or damaged.
        """
        with self._store._locked(fcntl.LOCK_SH):
            found = self._index.named(owner, name)
            return None if found is None else self._token_ids(found)

    def delete(self, owner: str, name: str) -> None:
        """Take a name away, and drop its state, the beginnings of that, and what continues it.

        What has another name stays, with all that it needs. Nothing happens if there is no such name.
        """
        with self._store._locked(fcntl.LOCK_EX):
            found = self._index.take_name(owner, name)
            if found is not None:
                self._drop(found)

    def _drop(self, state: IndexedState) -> None:
        """Drop a state that has lost a name, with its relatives, unless it has another name."""
        if not self._index.has_name(state):
            self._index.drop([state, *self._relatives(state)])
            self._store._remove_unnamed()

    def _relatives(self, found: IndexedState) -> list[IndexedState]:
        try:
            ids = self._token_ids(found)
        except StateError:  # what is damaged has no tokens to go by
            return []
        shorter = self._index.find(prefix_hashes(ids, self._index.positions(len(ids))))
        return [*shorter, *(each for each in self._index.sharing(found.objects[:-1]) if self._continues(each, ids))]

    def _token_ids(self, state: IndexedState) -> NDArray[np.int32]:
        ids = np.concatenate([_token_ids(self._store._file(each)) for each in state.objects])
        if len(ids) != state.position or prefix_hashes(ids, [len(ids)])[len(ids)] != state.tokens_sha256:
            raise StateError(
                f"{self._store._file(state.objects[-1])} is of other tokens than the index says: delete the state and "
                "read its text again"
            )
        return ids

    def _continues(self, state: IndexedState, token_ids: NDArray[np.int32]) -> bool:
        """Whether a state continues these tokens. It has their whole segments, so one further object tells."""
        place = len(token_ids) // self._index.segment_tokens
        rest = token_ids[place * self._index.segment_tokens :]
        if state.position <= len(token_ids):
            return False
        try:
            found = _token_ids(self._store._file(state.objects[place]))
        except StateError:  # a damaged state is found when somebody restores it
            return False
        return np.array_equal(found[: len(rest)], rest)


def _token_ids(path: Path) -> NDArray[np.int32]:
    """The tokens of one part of a state, int32 [tokens]. Raises: StateError if the file has none, or cannot be read."""
    file = OpenedFile.open(path, error=StateError)
    stored = read_header(file).get("token_ids")
    if stored is None or stored.dtype != "I32" or stored.length != 4 * int(np.prod(stored.shape)):
        raise StateError(f"{path} is no part of a state: it has no token_ids")
    return np.frombuffer(file.read(stored.offset, stored.length), "<i4").astype(np.int32)
