"""States with names: they stay while others go, and take what is theirs with them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_sessions import new_session, random_ids, small_model
from support.stored_states import assert_sound

from sala_export.errors import StateError
from sala_export.runtime import state_store
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.runtime.state_store import StateStore

SEGMENT = 64
LENGTH = 300
BOOK, OTHER = random_ids(LENGTH), random_ids(LENGTH, seed=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from small_model("onnxruntime", tmp_path_factory.mktemp("names-model"))


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "SEGMENT_TOKENS", SEGMENT)


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states")


def saved(model: Model, store: StateStore, ids: list[int]) -> Session:
    session = new_session(model)
    session.prefill(ids)
    store.save(session)
    return session


def positions(store: StateStore) -> list[int]:
    return sorted(state.position for state in store.states)


def test_names_tell_their_tokens_in_every_process(small: Model, store: StateStore) -> None:
    for owner, ids in (("me", BOOK), ("you", OTHER)):
        saved(small, store, ids)
        store.named.add(owner, "book", ids, note=f"of {owner}", created=7)
    opened = StateStore(store.path)
    found = [(each.owner, each.name, each.position, each.created, each.note) for each in opened.named.all(small)]
    assert found == [("me", "book", LENGTH, 7, "of me"), ("you", "book", LENGTH, 7, "of you")]
    for owner, ids in (("me", BOOK), ("you", OTHER)):
        tokens = opened.named.token_ids(owner, "book")
        assert tokens is not None
        assert tokens.tolist() == ids
    assert opened.named.token_ids("me", "letter") is None
    with pytest.raises(StateError, match="has a state named 'book': choose another name"):
        opened.named.add("me", "book", OTHER)
    with pytest.raises(StateError, match="no state of these 299 tokens: save it first"):
        opened.named.add("me", "letter", BOOK[:-1])


def test_named_states_stay_while_others_go(small: Model, store: StateStore) -> None:
    saved(small, store, BOOK)
    store.named.add("me", "book", BOOK)
    limit = int(store.bytes * 2.5)
    limited = StateStore(store.path, max_bytes=limit)
    for seed in range(2, 5):
        saved(small, limited, random_ids(LENGTH, seed))
    assert limited.bytes <= limit
    assert limited.named.token_ids("me", "book") is not None
    limited.named.require_room(limit - small.state_bytes(LENGTH) * 2)
    with pytest.raises(StateError, match=r"states with names take .* of it, and this one takes"):
        limited.named.require_room(limit)
    tight = StateStore(store.path, max_bytes=int(1.5 * small.state_bytes(LENGTH)))
    with pytest.raises(StateError, match="leaves no room for the state of 300 tokens: delete some of that"):
        saved(small, tight, OTHER)
    assert positions(tight) == [LENGTH]
    assert_sound(tight)


def test_deleting_takes_what_belongs_to_the_name_alone(small: Model, store: StateStore) -> None:
    beginning = saved(small, store, BOOK[:280])
    session = beginning.fork()
    session.prefill(BOOK[280:])
    store.save(session)
    for seed in range(2):
        question = session.fork()
        question.prefill(random_ids(40, seed=5 + seed))
        store.save(question)
    # It has the same whole segments, and other tokens behind them.
    sibling = beginning.fork()
    sibling.prefill(random_ids(70, seed=9))
    store.save(sibling)
    saved(small, store, OTHER)
    for owner in ("me", "you"):
        store.named.add(owner, "book", BOOK)
    store.named.delete("me", "book")
    everything = positions(store)
    assert {280, LENGTH, LENGTH + 40} <= set(everything)
    store.named.delete("you", "book")
    assert store.named.all(small) == []
    assert small.restore_longest(store, BOOK).position == 0
    assert small.restore_longest(store, sibling.tokens).position == 350
    assert small.restore_longest(store, OTHER).position == LENGTH
    assert LENGTH + 40 not in positions(store)
    assert_sound(store)
    store.named.delete("you", "book")  # nothing happens


def test_replaced_name_takes_the_older_state_with_it(small: Model, store: StateStore) -> None:
    session = saved(small, store, BOOK)
    store.named.add("me", "book", BOOK)
    session.prefill(OTHER)
    store.save(session)
    store.named.add("me", "book", BOOK + OTHER, replace=True)
    tokens = store.named.token_ids("me", "book")
    assert tokens is not None
    assert tokens.tolist() == BOOK + OTHER
    assert positions(store) == [2 * LENGTH]
    assert_sound(store)


def test_damaged_state_is_told_and_can_be_deleted_or_saved_again(small: Model, store: StateStore) -> None:
    session = saved(small, store, BOOK)
    store.named.add("me", "book", BOOK)
    (found,) = [store._index.named("me", "book")]
    assert found is not None
    store._file(found.objects[0]).unlink()
    with pytest.raises(StateError, match=found.objects[0]):
        store.named.token_ids("me", "book")
    store.save(session)
    tokens = store.named.token_ids("me", "book")
    assert tokens is not None
    assert tokens.tolist() == BOOK
    store._file(found.objects[0]).unlink()
    store.named.delete("me", "book")
    assert store.named.all(small) == []
    assert LENGTH not in positions(store)


def test_older_stores_and_older_releases_go_on_working(small: Model, store: StateStore) -> None:
    saved(small, store, BOOK)
    with sqlite3.connect(store.path / "index.sqlite") as connection:
        connection.execute("DROP TABLE names")
    opened = StateStore(store.path)
    opened.named.add("me", "book", BOOK)
    # As an older release drops a state: it knows nothing of names.
    with sqlite3.connect(store.path / "index.sqlite") as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM states")
    assert opened.named.all(small) == []
    assert opened.named.token_ids("me", "book") is None
