"""Stores of states: what sessions share is there once, and what was saved is there after any kill."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.runtime_bundles import write_cpu_bundle
from support.small_models import write_small_checkpoint
from support.small_sessions import DENSE_LEN, SPARSE, random_ids
from support.stored_states import assert_sound, files

import sala_export
from sala_export.errors import RequestError, SessionError, StateError
from sala_export.runtime import state_store
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.runtime.state_index import prefix_hashes
from sala_export.runtime.state_store import StateStore

SEGMENT = 64
CHUNK = 48
PROBE = [5, 17, 42]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with both kinds of layers, which is sparse from 256 tokens on."""
    folder = tmp_path_factory.mktemp("store-model")
    mixers = ("lightning-attn", "minicpm4", "lightning-attn", "minicpm4")
    checkpoint = write_small_checkpoint(folder / "checkpoint", mixers, sparse_config=SPARSE, head_dim=64)
    return sala_export.load(write_cpu_bundle(checkpoint, folder / "small.sala"), runtime="onnxruntime", threads=1)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "SEGMENT_TOKENS", SEGMENT)


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states")


def read(model: Model, *prompts: list[int]) -> Session:
    session = model.session(chunk_tokens=CHUNK)
    for ids in prompts:
        session.prefill(ids)
    return session


def restored(model: Model, store: StateStore, ids: list[int]) -> Session:
    foretold = store.longest(model, ids)
    session = model.restore_longest(store, ids, chunk_tokens=CHUNK)
    assert foretold == session.position == session.past_length
    return session


def assert_equal_logits(actual: NDArray[np.float32] | None, expected: NDArray[np.float32] | None) -> None:
    assert actual is not None
    assert expected is not None
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(actual, expected)


def test_restored_sessions_go_on_exactly_as_the_session_does(small: Model, store: StateStore) -> None:
    ids = random_ids(700)
    session = read(small, ids)
    store.save(session)
    inner = [at for at in session.checkpoints if at >= DENSE_LEN]
    assert len(inner) > 3
    assert sorted(state.position for state in store.states) == inner
    assert any(at % SEGMENT for at in inner)
    for at in inner:
        alone = session.fork()
        alone.rewind(at)
        again = restored(small, store, [*ids[:at], *PROBE])
        assert again.position == at
        assert again.checkpoints == [at]
        assert_equal_logits(again.logits, alone.logits)
        assert_equal_logits(again.prefill(PROBE), alone.prefill(PROBE))
        greedy = {"max_new_tokens": 8, "stop_tokens": []}
        assert list(again.generate_tokens(**greedy)) == list(alone.generate_tokens(**greedy))  # type: ignore[arg-type]
    assert_sound(store)


@pytest.mark.parametrize("tokens", [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, DENSE_LEN, DENSE_LEN + 1])
def test_a_session_of_any_length_comes_back(small: Model, store: StateStore, tokens: int) -> None:
    ids = random_ids(tokens)
    session = read(small, ids)
    store.save(session)
    again = restored(small, store, ids)
    assert again.tokens.tolist() == ids
    assert_equal_logits(again.logits, session.logits)
    assert_equal_logits(again.prefill(PROBE), session.prefill(PROBE))


def test_the_longest_common_beginning_is_found(small: Model, store: StateStore) -> None:
    ids = random_ids(600)
    store.save(read(small, ids[:300]))
    store.save(read(small, ids[:500]))
    assert restored(small, store, ids).position == 500
    assert restored(small, store, ids[:500]).position == 500
    assert restored(small, store, ids[:499]).position < 500
    assert restored(small, store, [*ids[:400], 4]).position < 500
    assert restored(small, store, [4, *ids]).position == 0
    assert restored(small, store, np.asarray(ids)).position == 500  # type: ignore[arg-type]
    limited = small.restore_longest(store, ids, max_context=400)
    assert 300 <= limited.position <= 400
    assert limited.max_context == 400
    with pytest.raises(SessionError, match="token_ids is of type str"):
        small.restore_longest(store, "text")  # type: ignore[arg-type]


def test_short_checkpoints_of_a_long_prompt_are_left_out(small: Model, store: StateStore) -> None:
    session = read(small, random_ids(700))
    session.rewind(session.checkpoints[0])
    assert session.position < DENSE_LEN
    session.prefill(random_ids(300))
    store.save(session)
    assert min(state.position for state in store.states) >= DENSE_LEN


def test_a_turn_writes_only_the_turn(small: Model, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    book = random_ids(12 * SEGMENT + 10)
    session = read(small, book)
    store.save(session)
    for grown in (session, restored(small, store, book), session.fork()):
        before = files(store)
        ranges = written_segments(monkeypatch)
        turn = random_ids(70, seed=len(before))
        grown.prefill(turn)
        answer = list(grown.generate_tokens(max_new_tokens=5, stop_tokens=[]))
        store.save(grown)
        assert ranges == [12 * SEGMENT], "the segment that the turn has filled"
        added = sum(files(store).values()) - sum(before.values())
        alone = small.state_bytes(len(book)) - small.state_bytes(0)
        assert 0 < added < alone / 2
        assert restored(small, store, [*book, *turn, *answer]).position == len(book) + len(turn) + len(answer) - 1
    assert_sound(store)


def written_segments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the segments begin that are written from now on."""
    found: list[int] = []
    put = StateStore._put

    def watched(self: StateStore, write: object, sizes: dict[str, int]) -> str:
        options = getattr(write, "keywords")  # noqa: B009
        if "last" in options:
            found.append(options["first"])
        return put(self, write, sizes)  # type: ignore[arg-type]

    monkeypatch.setattr(StateStore, "_put", watched)
    return found


def test_what_is_there_is_not_written_again(small: Model, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(300)
    session = read(small, ids)
    store.save(session)
    monkeypatch.setattr(StateStore, "_put", lambda *_: pytest.fail("written again"))
    first = store.states[0].last_used
    store.save(session)
    store.save(read(small, ids))
    assert store.states[0].last_used > first


def test_continuations_of_one_book_share_it(small: Model, store: StateStore) -> None:
    book = random_ids(10 * SEGMENT)
    parent = read(small, book)
    store.save(parent)
    alone = store.bytes
    forks = [parent.fork() for _ in range(3)]
    for seed, fork in enumerate(forks):
        fork.prefill(random_ids(20, seed))
        store.save(fork)
    again = read(small, book, random_ids(20, 9))  # which does not know that the book is there
    store.save(again)
    assert store.bytes == sum(files(store).values())
    assert store.bytes - alone < 2 * alone
    for seed, fork in enumerate([*forks, again]):
        ids = [*book, *random_ids(20, 9 if fork is again else seed)]
        found = restored(small, store, ids)
        assert found.position == len(ids)
        assert_equal_logits(found.prefill(PROBE), fork.prefill(PROBE))


def test_what_a_session_forgets_is_not_taken_for_the_new(small: Model, store: StateStore) -> None:
    session = read(small, random_ids(400))
    store.save(session)
    for restart in (lambda: session.rewind(session.checkpoints[-2]), session.reset):
        restart()
        session.prefill(random_ids(300, seed=5))
        store.save(session)
        found = restored(small, store, session.tokens.tolist())
        assert found.position == session.position
        assert_equal_logits(found.prefill(PROBE), session.fork().prefill(PROBE))


def test_evicted_segments_are_written_again(small: Model, store: StateStore) -> None:
    session = read(small, random_ids(400))
    store.save(session)
    limited = StateStore(store.path, max_bytes=store.bytes + 1)
    limited.save(read(small, random_ids(410, seed=1)))
    assert restored(small, store, session.tokens.tolist()).position == 0
    session.prefill(PROBE)
    limited.save(session)
    assert restored(small, store, session.tokens.tolist()).position == 403
    assert_sound(store)


def test_what_was_used_longest_ago_goes(small: Model, tmp_path: Path) -> None:
    prompts = [random_ids(200, seed) for seed in range(4)]
    size = StateStore(tmp_path / "measure")
    size.save(read(small, prompts[0]))
    store = StateStore(tmp_path / "states", max_bytes=int(3.5 * size.bytes))
    for ids in prompts[:3]:
        store.save(read(small, ids))
    assert restored(small, store, prompts[0]).position == 200, "and it counts as used"
    store.save(read(small, prompts[3]))
    assert [restored(small, store, ids).position for ids in prompts] == [200, 0, 200, 200]
    assert store.bytes <= int(3.5 * size.bytes)
    assert_sound(store)


def test_a_state_that_exceeds_the_limit_alone_is_refused(small: Model, tmp_path: Path) -> None:
    session = read(small, random_ids(300))
    store = StateStore(tmp_path / "states", max_bytes="1K")
    with pytest.raises(StateError, match=r"has a limit of 1024 bytes .* state of 300 tokens takes \d+ .*larger limit"):
        store.save(session)
    # The size of one file is known before. Headers of parts add to it.
    store.max_bytes = small.state_bytes(300) + 1
    with pytest.raises(StateError, match=r"the state of 300 tokens takes"):
        store.save(session)
    assert store.bytes == 0
    assert_sound(store)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "other"])
def test_a_damaged_file_costs_only_the_states_that_need_it(
    small: Model, store: StateStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    ids, other = random_ids(600), random_ids(300, seed=1)
    session = read(small, ids)
    store.save(session)
    store.save(read(small, other))
    count = len(store.states)
    longest = store._longest(np.asarray(ids, np.int32))
    assert longest is not None
    path = store._file(longest.objects[8])  # tokens 512 to 576
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no state")
    foretold = store.longest(small, ids)
    again = small.restore_longest(store, ids, chunk_tokens=CHUNK)
    assert foretold == (600 if damage == "flip" else again.position), "without reading it, only its size is known"
    assert 0 < again.position < 576
    assert restored(small, store, other).position == 300
    lost = [record.getMessage() for record in caplog.records]
    assert len(lost) == 1
    assert str(path) in lost[0]
    assert lost[0].endswith(f"drops the states that need this file: {count - len(store.states)}")
    assert_sound(store)
    store.save(session)
    assert restored(small, store, ids).position == 600, "written again"


def test_too_many_open_files_cost_no_state(small: Model, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(read(small, random_ids(300)))
    path = store._file(store._longest(np.asarray(random_ids(300), np.int32)).objects[0])  # type: ignore[union-attr]
    opened = os.open

    def refuse(name: object, *arguments: int, **options: int) -> int:
        if name == path:
            raise OSError(24, "Too many open files")
        return opened(name, *arguments, **options)  # type: ignore[arg-type, call-overload, no-any-return]

    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StateError):
        restored(small, store, random_ids(300))
    monkeypatch.undo()
    path.write_bytes(content)
    assert restored(small, store, random_ids(300)).position == 300


def test_progress_counts_files(small: Model, store: StateStore) -> None:
    ids = random_ids(3 * SEGMENT + 5)
    store.save(read(small, ids))
    told: list[tuple[int, int]] = []
    small.restore_longest(store, ids, on_progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert set(told) == {(done, 4) for done in range(5)}


def test_what_comes_out_of_progress_comes_out(small: Model, store: StateStore) -> None:
    ids = random_ids(200)
    store.save(read(small, ids))

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.restore_longest(store, ids, on_progress=stop)
    assert restored(small, store, ids).position == 200


def test_a_store_is_of_one_model(small: Model, model: Model, store: StateStore) -> None:
    session = small.session()
    session.prefill(PROBE)
    store.save(session)
    other = model.session(max_context=512)
    other.prefill(PROBE)
    pattern = (
        f"{store.path} holds states of the model with fingerprint {small.fingerprint} in fp32.*{model.fingerprint}"
    )
    with pytest.raises(StateError, match=pattern):
        store.save(other)
    with pytest.raises(StateError, match=pattern):
        model.restore_longest(store, PROBE)
    assert restored(small, store, PROBE).position == 3


def test_other_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    with pytest.raises(StateError, match="taken is not empty and no state store"):
        StateStore(taken)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with sqlite3.connect(foreign / "index.sqlite") as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(StateError, match="no state store"):
        StateStore(foreign)
    (foreign / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StateError, match="file is not a database: choose another folder"):
        StateStore(foreign)
    with pytest.raises(StateError, match="No such file or directory"):
        StateStore(tmp_path / "no" / "folder")
    with pytest.raises(StateError, match="File exists"):
        StateStore(taken / "thesis.txt")
    with pytest.raises(StateError, match="null character"):
        StateStore("a\0b")


def test_a_newer_store_is_refused(small: Model, store: StateStore) -> None:
    store.save(read(small, PROBE))
    with sqlite3.connect(store.path / "index.sqlite") as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(StateError, match="store of version 2, and this release reads version 1"):
        StateStore(store.path)


def test_a_store_keeps_its_segments(small: Model, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(read(small, random_ids(300)))
    monkeypatch.setattr(state_store, "SEGMENT_TOKENS", 100)
    again = StateStore(store.path)
    session = restored(small, again, random_ids(300))
    session.prefill(random_ids(100, seed=1))
    again.save(session)
    ids = [*random_ids(300), *random_ids(100, seed=1)]
    assert_equal_logits(restored(small, again, ids).prefill(PROBE), session.prefill(PROBE))


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "0", "200X", "lots", "9" * 19 + "T"])
def test_wrong_limit_is_refused(tmp_path: Path, limit: object) -> None:
    with pytest.raises((RequestError, StateError), match="bytes"):
        StateStore(tmp_path / "states", max_bytes=limit)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("10M", 10 << 20), ("200G", 200 << 30), ("200 GiB", 200 << 30), ("1tb", 1 << 40)]
)
def test_limit_may_be_text(tmp_path: Path, text: str, size: int) -> None:
    assert StateStore(tmp_path / "states", max_bytes=text).max_bytes == size


def test_an_empty_session_is_not_saved(small: Model, store: StateStore) -> None:
    with pytest.raises(SessionError, match="nothing to save: prefill it first"):
        store.save(small.session())
    assert small.restore_longest(store, []).position == 0


def test_hashes_of_beginnings_are_of_little_endian_int32() -> None:
    ids = np.asarray([1, 2, 300], np.int32)
    expected = hashlib.sha256(bytes([1, 0, 0, 0, 2, 0, 0, 0])).hexdigest()
    assert prefix_hashes(ids, [2])[2] == prefix_hashes(ids, [1, 2, 3])[2] == expected


def test_threads_save_and_restore_side_by_side(small: Model, tmp_path: Path) -> None:
    book = random_ids(300)
    parent = read(small, book)
    store = StateStore(tmp_path / "states", max_bytes="3M")
    errors: list[BaseException] = []
    compared: list[int] = []

    def work(session: Session, seed: int) -> None:
        try:
            for turn in range(6):
                session.prefill(random_ids(30, 10 * seed + turn))
                store.save(session)
                found = restored(small, store, session.tokens.tolist())
                if found.position == session.position:  # else another thread has needed the room
                    assert_equal_logits(found.prefill(PROBE), session.fork().prefill(PROBE))
                    compared.append(seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(parent.fork(), seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(compared) > 10
    assert store.bytes <= 3 << 20
    assert_sound(store)


def test_a_kill_while_a_store_is_made_leaves_one_that_can_be_used(model: Model, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    StateStore(tmp_path / "empty")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "index.sqlite").touch()
    session = model.session(max_context=512)
    session.prefill(PROBE)
    store = StateStore(begun)
    store.save(session)
    assert model.restore_longest(store, PROBE).position == 3


def test_leftovers_of_killed_processes_go(small: Model, store: StateStore) -> None:
    store.save(read(small, random_ids(100)))
    (store.path / "partial" / ".a.partial").mkdir()
    (store.path / "partial" / ".a.partial" / "content").write_bytes(b"half")
    (store.path / "objects" / "ab").mkdir(exist_ok=True)
    (store.path / "objects" / "ab" / ("ab" * 32)).write_bytes(b"unnamed")
    StateStore(store.path)
    assert_sound(store)


def test_files_of_a_state_that_was_replaced_go(small: Model, store: StateStore) -> None:
    session = small.session(max_context=400, chunk_tokens=CHUNK)
    session.prefill(random_ids(100))
    store.save(session)
    before = store.bytes
    (state,) = store._index.find(prefix_hashes(session.tokens, [100]))
    # As another runtime would save the same tokens, whose numbers are rounded in another way.
    other = replace(state, objects=tuple(f"{each[:-1]}x" for each in state.objects))
    sizes = dict.fromkeys(other.objects, 7)
    store._index.add([other], sizes, [], model=small.fingerprint, precision=small.precision)
    assert store.bytes == 7 * len(other.objects) < before
    assert store._index.evict(1, other) == []


def test_a_file_that_another_process_has_mended_meanwhile_stays(
    small: Model, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = small.session(max_context=400, chunk_tokens=CHUNK)
    session.prefill(random_ids(200))
    store.save(session)
    (path, *_) = sorted((store.path / "objects").glob("??/*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    def mend(digest: str, error: StateError) -> None:
        beside = store.path / "partial" / "mended"
        beside.write_bytes(whole)
        beside.replace(path)

    monkeypatch.setattr(store, "_require_bad", mend)
    restored = small.restore_longest(store, session.tokens, max_context=400)
    assert restored.position == 200
    assert_sound(store)
