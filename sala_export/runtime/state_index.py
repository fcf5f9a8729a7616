"""The index of a state store: which states there are, which files each needs, and when it was last used.

It is one SQLite file. Every call is one transaction on a connection of its own, so any thread and process may call. A
file named by its hash is an object here. The objects of a state are in order: its segments, then its checkpoint.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

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

    def object_sizes(self) -> dict[str, int]:
        """Bytes of every object, by its hash."""
        with self._transaction() as connection:
            return dict(connection.execute("SELECT hash, bytes FROM objects"))

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
        found = []
        with self._transaction() as connection:
            for position in sorted(prefixes, reverse=True):
                rows = connection.execute(
                    "SELECT object FROM states JOIN parts ON state = id WHERE position = ? AND tokens_sha256 = ?"
                    " ORDER BY ordinal",
                    (position, prefixes[position]),
                ).fetchall()
                if rows:
                    found.append(IndexedState(position, prefixes[position], tuple(row[0] for row in rows)))
        return found

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
                connection.execute("DELETE FROM states WHERE position = ? AND tokens_sha256 = ?", key)
                row = connection.execute("INSERT INTO states VALUES (NULL, ?, ?, 0)", key).lastrowid
                for ordinal, each in enumerate(state.objects):
                    connection.execute("INSERT OR REPLACE INTO objects VALUES (?, ?)", (each, sizes[each]))
                    connection.execute("INSERT INTO parts VALUES (?, ?, ?)", (row, ordinal, each))
            _drop_unneeded(connection)
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

    def evict(self, most: int, kept: IndexedState) -> int:
        """Drop what was used longest ago, until all objects have at most `most` bytes. `kept` stays.

        Returns: how many states were dropped. Of those that were used at once, the shortest goes first.
        """
        dropped = 0
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT id FROM states WHERE NOT (position = ? AND tokens_sha256 = ?) ORDER BY used, position",
                (kept.position, kept.tokens_sha256),
            ).fetchall()
            for (state,) in rows:
                if _bytes(connection) <= most:
                    break
                _drop(connection, state)
                dropped += 1
        return dropped


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


def _drop(connection: sqlite3.Connection, state: int) -> None:
    """Drop a state, and the objects that no other one needs."""
    connection.execute("DELETE FROM states WHERE id = ?", (state,))
    _drop_unneeded(connection)


def _drop_unneeded(connection: sqlite3.Connection) -> None:
    """Drop the objects that no state needs."""
    connection.execute("DELETE FROM objects WHERE NOT EXISTS (SELECT 1 FROM parts WHERE object = hash)")
