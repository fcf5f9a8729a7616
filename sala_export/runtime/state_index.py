"""The index of a state store: which states there are, which files each needs, and when it was last used.

It is one SQLite file. Every call is one transaction on a connection of its own, so any thread and process may call. A
file named by its hash is an object here. The objects of a state are in order: its segments, then its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StateError

INDEX_FILE = "index.sqlite"
_OWN_FILES = {INDEX_FILE, f"{INDEX_FILE}-journal"}
"""What a process that was killed while it made a store may have left."""

_APPLICATION = 0x53414C41  # "SALA", in the header of the file
_VERSION = 1
_BUSY_SECONDS = 60.0

_OTHER_FOLDER = "choose another folder, or delete this one if it is a store"
_ADVICE = {
    "SQLITE_BUSY": "another process holds it, try again",
    "SQLITE_FULL": "make room on its disk",
    "SQLITE_CORRUPT": _OTHER_FOLDER,
    "SQLITE_NOTADB": _OTHER_FOLDER,
}
"""What to do about errors of SQLite."""

_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE objects (hash TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE states (id INTEGER PRIMARY KEY, position INTEGER NOT NULL, tokens_sha256 TEXT NOT NULL,"
    " used INTEGER NOT NULL, UNIQUE (position, tokens_sha256))",
    "CREATE TABLE parts (state INTEGER NOT NULL REFERENCES states ON DELETE CASCADE, ordinal INTEGER NOT NULL,"
    " object TEXT NOT NULL REFERENCES objects, PRIMARY KEY (state, ordinal)) WITHOUT ROWID",
    "CREATE INDEX parts_by_object ON parts (object)",
)
_NAMES = (
    "CREATE TABLE IF NOT EXISTS names (owner TEXT NOT NULL, name TEXT NOT NULL,"
    " state INTEGER NOT NULL REFERENCES states ON DELETE CASCADE, created INTEGER NOT NULL, note TEXT NOT NULL,"
    " PRIMARY KEY (owner, name)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS names_by_state ON names (state)",
)
"""They come into an older store when it is opened. An older release does not look at them: it takes a state with a name
for one like any other."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """One state of a store."""

    position: int
    """Tokens in it."""
    bytes: int
    """Bytes of the files that it needs. Other states may share them."""
    last_used: datetime
    """When it was last saved or restored, in UTC."""


@dataclass(frozen=True, slots=True)
class StoredSegments:
    """The beginning of a session's context that a store has. The session keeps it, so that it is not read again."""

    length: int
    """Tokens of a segment."""
    hashes: tuple[str, ...] = ()

    def up_to(self, position: int) -> StoredSegments:
        """The segments that end at or before a position."""
        return StoredSegments(self.length, self.hashes[: position // self.length])


@dataclass(frozen=True, slots=True)
class IndexedState:
    """A state by its tokens, with the hashes of its objects."""

    position: int
    tokens_sha256: str
    objects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedState:
    """A state that somebody gave a name, so that it stays until the name goes."""

    owner: str
    name: str
    """Unique among those of one owner."""
    position: int
    """Tokens of the state."""
    created: int
    """When the name was given, in seconds since 1970, in UTC."""
    note: str
    """What the owner keeps with it."""


class StateIndex:
    """The index in the folder of a store."""

    def __init__(self, folder: Path, segment_tokens: int) -> None:
        """Open the index, or make one in an empty folder.

        Args: segment_tokens: tokens of a segment if the index is new.
        Raises: StateError if the folder holds something else, or a store of another version.
        """
        self._folder = folder
        self._path = folder / INDEX_FILE
        if not self._path.exists():
            self._require_empty()
        with self._transaction(mode="rwc") as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (application, version, tables) == (0, 0, 0):
                self._require_empty()
                self._create(connection, segment_tokens)
            elif application != _APPLICATION:
                raise self._is_no_store()
            elif version != _VERSION:
                raise StateError(
                    f"{folder} is a state store of version {version}, and this release reads version {_VERSION}: use "
                    "the release that made it, or another folder"
                )
            for statement in _NAMES:
                connection.execute(statement)
            facts = dict(connection.execute("SELECT name, value FROM facts"))
        self.identity: str = facts["identity"]
        """Of this store alone, wherever it lies."""
        self.segment_tokens = int(facts["segment_tokens"])

    def _require_empty(self) -> None:
        if any(each.name not in _OWN_FILES for each in self._folder.iterdir()):
            raise self._is_no_store()

    def _is_no_store(self) -> StateError:
        return StateError(
            f"{self._folder} is not empty and no state store: give an empty folder, or one that does not exist yet"
        )

    @staticmethod
    def _create(connection: sqlite3.Connection, segment_tokens: int) -> None:
        for statement in _SCHEMA:
            connection.execute(statement)
        facts = {"identity": uuid.uuid4().hex, "segment_tokens": str(segment_tokens)}
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def _transaction(self, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        """A transaction that writes, committed on the disk when the block succeeds, else rolled back.

        Raises: StateError for whatever SQLite says.
        """
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            advice = _ADVICE.get(getattr(error, "sqlite_errorname", ""), "choose another folder for the store")
            raise StateError(f"{self._path} cannot be used: {error}: {advice}") from None

    def require_owner(self, model: str, precision: str) -> None:
        """Refuse another model or precision than the one whose states are here. A new store takes any.

        Raises: StateError naming both.
        """
        with self._transaction() as connection:
            self._require_owner(connection, model, precision)

    def _require_owner(self, connection: sqlite3.Connection, model: str, precision: str) -> None:
        facts = dict(connection.execute("SELECT name, value FROM facts"))
        owner = (facts.get("model", model), facts.get("precision", precision))
        if owner != (model, precision):
            raise StateError(
                f"{self._folder} holds states of the model with fingerprint {owner[0]} in {owner[1]}, and this one has "
                f"fingerprint {model} in {precision}: give each model and precision a folder of its own"
            )

    def objects(self) -> set[str]:
        """Hashes of all objects."""
        with self._transaction() as connection:
            return {each for (each,) in connection.execute("SELECT hash FROM objects")}

    def sizes_of(self, hashes: Collection[str]) -> dict[str, int]:
        """Bytes of those of these objects that the index has, by their hashes."""
        query = "SELECT hash, bytes FROM json_each(?) JOIN objects ON hash = value"
        with self._transaction() as connection:
            return dict(connection.execute(query, (json.dumps([*hashes]),)))

    def bytes(self) -> int:
        """Bytes of all objects."""
        with self._transaction() as connection:
            return _bytes(connection)

    def states(self) -> list[StoredState]:
        """All states, the one that was used last first."""
        query = (
            "SELECT position, sum(bytes), used FROM states JOIN parts ON state = id JOIN objects ON hash = object"
            " GROUP BY id ORDER BY used DESC, position DESC"
        )
        with self._transaction() as connection:
            rows = connection.execute(query).fetchall()
        return [StoredState(position, size, datetime.fromtimestamp(used / 1e9, UTC)) for position, size, used in rows]

    def positions(self, most: int) -> list[int]:
        """Positions of at most `most` where states are, in order."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT DISTINCT position FROM states WHERE position <= ? ORDER BY 1", (most,))
            return [position for (position,) in rows]

    def find(self, prefixes: Mapping[int, str]) -> list[IndexedState]:
        """States of these tokens, the longest first.

        Args: prefixes: hashes of tokens by their number.
        """
        query = (
            "SELECT states.id, position, tokens_sha256 FROM json_each(?)"
            " JOIN states ON position = CAST(key AS INTEGER) AND tokens_sha256 = value ORDER BY position DESC"
        )
        with self._transaction() as connection:
            rows = connection.execute(query, (json.dumps(prefixes),)).fetchall()
            return [_indexed(connection, *row) for row in rows]

    def add(
        self,
        states: Sequence[IndexedState],
        sizes: Mapping[str, int],
        used: Collection[IndexedState],
        *,
        model: str,
        precision: str,
    ) -> None:
        """Add states in the place of those of the same tokens, and mark all of them, and those `used`, as used.

        Args: sizes: bytes of each object of `states`, whose files must be in place.
        Raises: StateError as `require_owner`.
        """
        with self._transaction() as connection:
            self._require_owner(connection, model, precision)
            facts = {"model": model, "precision": precision}
            connection.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", facts.items())
            for state in states:
                key = (state.position, state.tokens_sha256)
                row = _state_of(connection, *key)
                before = [] if row is None else _objects_of(connection, row)
                if row is None:
                    row = connection.execute("INSERT INTO states VALUES (NULL, ?, ?, 0)", key).lastrowid
                connection.execute("DELETE FROM parts WHERE state = ?", (row,))  # the state keeps its names
                for ordinal, each in enumerate(state.objects):
                    connection.execute("INSERT OR REPLACE INTO objects VALUES (?, ?)", (each, sizes[each]))
                    connection.execute("INSERT INTO parts VALUES (?, ?, ?)", (row, ordinal, each))
                _drop_unneeded(connection, before)
            _mark_used(connection, [*states, *used])

    def mark_used(self, state: IndexedState) -> None:
        """Let a state be the one that was used last."""
        with self._transaction() as connection:
            _mark_used(connection, [state])

    def drop_object(self, digest: str) -> int:
        """Drop all states that need an object, and the object. Returns how many they were."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT DISTINCT state FROM parts WHERE object = ?", (digest,)).fetchall()
            for (state,) in rows:
                _drop(connection, state)
            return len(rows)

    def evict(self, most: int, kept: IndexedState) -> list[str]:
        """Drop what was used longest ago, until all objects have at most `most` bytes.

        `kept` stays, and so does what has a name. Of those that were used at once, the shortest goes first.
        Returns: hashes of the objects that were dropped.
        """
        dropped: list[str] = []
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT id FROM states WHERE NOT (position = ? AND tokens_sha256 = ?)"
                " AND id NOT IN (SELECT state FROM names) ORDER BY used, position",
                (kept.position, kept.tokens_sha256),
            ).fetchall()
            total = _bytes(connection)
            for (state,) in rows:
                if total <= most:
                    break
                gone = _drop(connection, state)
                total -= sum(gone.values())
                dropped += gone
        return dropped

    def give_name(self, named: NamedState, tokens_sha256: str, *, replace: bool) -> IndexedState | None:
        """Give a name to the state of these tokens.

        Args: replace: if the name is taken, take it from its state.
        Returns: the state that had the name.
        Raises: StateError if there is no state of these tokens, or if the name is taken.
        """
        with self._transaction() as connection:
            state = _state_of(connection, named.position, tokens_sha256)
            if state is None:
                raise StateError(f"{self._folder} has no state of these {named.position} tokens: save it first")
            before = _named(connection, named.owner, named.name)
            if before is not None and not replace:
                raise StateError(f"{self._folder} has a state named {named.name!r}: choose another name")
            values = (named.owner, named.name, state, named.created, named.note)
            connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", values)
            return None if before is None else before[1]

    def names(self) -> list[NamedState]:
        """All names, in the order in which they were given."""
        query = (
            "SELECT owner, name, position, created, note FROM names JOIN states ON state = id"
            " ORDER BY created, owner, name"
        )
        with self._transaction() as connection:
            rows = connection.execute(query).fetchall()
        return [
            NamedState(owner=owner, name=name, position=position, created=created, note=note)
            for owner, name, position, created, note in rows
        ]

    def named(self, owner: str, name: str) -> IndexedState | None:
        """The state of a name."""
        with self._transaction() as connection:
            found = _named(connection, owner, name)
            return None if found is None else found[1]

    def named_bytes(self) -> int:
        """Bytes of the objects of all states that have names."""
        query = (
            "SELECT coalesce(sum(bytes), 0) FROM objects WHERE hash IN (SELECT object FROM parts WHERE state IN"
            " (SELECT state FROM names))"
        )
        with self._transaction() as connection:
            (total,) = connection.execute(query).fetchone()
            return int(total)

    def take_name(self, owner: str, name: str) -> IndexedState | None:
        """Take a name from its state, which stays. Returns the state."""
        with self._transaction() as connection:
            found = _named(connection, owner, name)
            connection.execute("DELETE FROM names WHERE owner = ? AND name = ?", (owner, name))
            return None if found is None else found[1]

    def has_name(self, state: IndexedState) -> bool:
        """True if a state has a name."""
        query = "SELECT 1 FROM names JOIN states ON state = id WHERE position = ? AND tokens_sha256 = ?"
        with self._transaction() as connection:
            return connection.execute(query, (state.position, state.tokens_sha256)).fetchone() is not None

    def sharing(self, segments: Sequence[str]) -> list[IndexedState]:
        """States without names that begin with these objects."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT id, position, tokens_sha256 FROM states WHERE id NOT IN (SELECT state FROM names)"
            ).fetchall()
            states = [_indexed(connection, *row) for row in rows]
        return [state for state in states if state.objects[: len(segments)] == tuple(segments)]

    def drop(self, states: Collection[IndexedState]) -> None:
        """Drop those of these states that have no name, and the objects that no other state needs."""
        query = "DELETE FROM states WHERE position = ? AND tokens_sha256 = ? AND id NOT IN (SELECT state FROM names)"
        with self._transaction() as connection:
            for state in states:
                row = _state_of(connection, state.position, state.tokens_sha256)
                needed = [] if row is None else _objects_of(connection, row)
                connection.execute(query, (state.position, state.tokens_sha256))
                _drop_unneeded(connection, needed)


def _state_of(connection: sqlite3.Connection, position: int, tokens_sha256: str) -> int | None:
    """The id of the state of these tokens."""
    query = "SELECT id FROM states WHERE position = ? AND tokens_sha256 = ?"
    row = connection.execute(query, (position, tokens_sha256)).fetchone()
    return None if row is None else int(row[0])


def _named(connection: sqlite3.Connection, owner: str, name: str) -> tuple[int, IndexedState] | None:
    """The state of a name, with its id."""
    query = "SELECT id, position, tokens_sha256 FROM names JOIN states ON state = id WHERE owner = ? AND name = ?"
    row = connection.execute(query, (owner, name)).fetchone()
    return None if row is None else (row[0], _indexed(connection, *row))


def _indexed(connection: sqlite3.Connection, state: int, position: int, tokens_sha256: str) -> IndexedState:
    return IndexedState(position, tokens_sha256, tuple(_objects_of(connection, state)))


def prefix_hashes(token_ids: NDArray[np.int32], positions: Iterable[int]) -> dict[int, str]:
    """SHA-256 of the first tokens, as little-endian int32, by how many they are. `positions` are in order."""
    tokens = np.ascontiguousarray(token_ids, dtype="<i4")
    digest, hashes, done = hashlib.sha256(), {}, 0
    for position in positions:
        digest.update(tokens[done:position].data)
        hashes[position], done = digest.hexdigest(), position
    return hashes


def _bytes(connection: sqlite3.Connection) -> int:
    (total,) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM objects").fetchone()
    return int(total)


def _mark_used(connection: sqlite3.Connection, states: Collection[IndexedState]) -> None:
    """The clock may go back, the order of uses does not."""
    (last,) = connection.execute("SELECT coalesce(max(used), 0) FROM states").fetchone()
    now = max(time.time_ns(), last + 1)
    connection.executemany(
        "UPDATE states SET used = ? WHERE position = ? AND tokens_sha256 = ?",
        [(now, state.position, state.tokens_sha256) for state in states],
    )


def _objects_of(connection: sqlite3.Connection, state: int) -> list[str]:
    rows = connection.execute("SELECT object FROM parts WHERE state = ? ORDER BY ordinal", (state,))
    return [each for (each,) in rows]


def _drop(connection: sqlite3.Connection, state: int) -> dict[str, int]:
    """Drop a state, and as `_drop_unneeded` the objects that it needed."""
    needed = _objects_of(connection, state)
    connection.execute("DELETE FROM states WHERE id = ?", (state,))
    return _drop_unneeded(connection, needed)


def _drop_unneeded(connection: sqlite3.Connection, objects: Collection[str]) -> dict[str, int]:
    """Drop those of these objects that no state needs any more. Returns their bytes by their hashes."""
    query = (
        "SELECT hash, bytes FROM json_each(?) JOIN objects ON hash = value"
        " WHERE NOT EXISTS (SELECT 1 FROM parts WHERE object = hash)"
    )
    unneeded = dict(connection.execute(query, (json.dumps([*objects]),)).fetchall())
    connection.executemany("DELETE FROM objects WHERE hash = ?", [(each,) for each in unneeded])
    return unneeded
