"""What lies in the folder of a state store."""

from __future__ import annotations

import sqlite3

from sala_export.runtime.state_store import StateStore


def files(store: StateStore) -> dict[str, int]:
    """Bytes of the objects on the disk, by their hash."""
    return {path.name: path.stat().st_size for path in (store.path / "objects").glob("??/*")}


def assert_sound(store: StateStore) -> None:
    """The files are those of the index, no others, and nothing is half written."""
    with sqlite3.connect(store.path / "index.sqlite") as connection:
        objects = dict(connection.execute("SELECT hash, bytes FROM objects"))
        needed = {row[0] for row in connection.execute("SELECT object FROM parts")}
    assert files(store) == objects
    assert set(objects) == needed
    assert list((store.path / "partial").iterdir()) == []
