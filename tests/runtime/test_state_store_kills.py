"""Stores of states in several processes: kills at any moment, two at once, full disks."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.runtime_bundles import tiny_cpu_bundle
from support.small_sessions import random_ids
from support.stored_states import assert_sound

import sala_export
from sala_export.runtime import state_store
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.runtime.state_store import StateStore

WAIT_S = 120

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

_CHILD = """
import hashlib, sys
import numpy as np
import sala_export
from sala_export.errors import SalaError
from sala_export.runtime import state_store
state_store.SEGMENT_TOKENS = 64
model = sala_export.load(sys.argv[1], runtime="onnxruntime", threads=1)
path, seed = sys.argv[2], int(sys.argv[3])

def ids(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(3, 97, rng.integers(100, 700)).tolist()
"""
_SAVES = """
store = state_store.StateStore(path)
print("ready", flush=True)
for each in range(seed * 1000, seed * 1000 + 999):
    session = model.restore_longest(store, ids(each - 1) if each % 2 else ids(each))
    session.prefill(ids(each))
    store.save(session)
    tokens = hashlib.sha256(session.tokens.tobytes()).hexdigest()
    print(*session.tokens, hashlib.sha256(session.logits.tobytes()).hexdigest(), flush=True)
"""


def child(code: str, path: Path, seed: int = 0, prefix: tuple[str, ...] = ()) -> list[str]:
    code = _CHILD + textwrap.dedent(code)
    return [*prefix, sys.executable, "-c", code, str(tiny_cpu_bundle()), str(path), str(seed)]


def saving(path: Path, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(child(_SAVES, path, seed), stdout=subprocess.PIPE, text=True)


def confirmed_until_killed(processes: list[subprocess.Popen[str]], rng: random.Random) -> list[str]:
    """Kill processes at some moment of their first few saves. Returns what they said that they had saved."""
    lines = []
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines += [process.stdout.readline() for _ in range(rng.randrange(3))]
    time.sleep(0.3 * rng.random())
    for process in processes:
        process.send_signal(signal.SIGKILL)
        lines += process.communicate(timeout=WAIT_S)[0].splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.release)])
def test_kills_lose_nothing_that_was_saved(model: Model, tmp_path: Path, kills: int) -> None:
    """Two processes save to one store, and both are killed at some moment."""
    rng = random.Random(0)
    path, confirmed = tmp_path / "states", 0
    for round_ in range(kills // 2):
        lines = confirmed_until_killed([saving(path, 2 * round_ + each) for each in range(2)], rng)
        store = StateStore(path)
        assert_sound(store)
        for line in lines:
            *tokens, logits = line.split()
            session = model.restore_longest(store, [int(token) for token in tokens])
            assert session.position == len(tokens)
            assert session.logits is not None
            assert hashlib.sha256(session.logits.tobytes()).hexdigest() == logits
        confirmed += len(lines)
    assert confirmed > kills / 2


@needs_root
def test_full_disk_and_read_only_disk_leave_the_store_as_it_was(tmp_path: Path) -> None:
    code = """
    import subprocess
    from pathlib import Path
    folder = Path(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    store = state_store.StateStore(folder / "states")
    session = model.session(max_context=1024)
    session.prefill(list(range(3, 103)))
    store.save(session)
    def listed():
        return sorted((str(each), each.stat().st_size) for each in folder.rglob("*") if each.is_file())
    before = listed()
    filler = folder / "filler"
    free = int(subprocess.check_output(["stat", "-f", "-c", "%f", folder])) * 4096
    session.prefill(list(range(3, 503)))
    for left in (0, 40, 120, 200, 280):
        filler.write_bytes(bytes(free - (left << 10)))
        try:
            store.save(session)
            print("saved")
            break
        except SalaError as error:
            print(type(error).__name__, error)
        filler.unlink()
        assert listed() == before, left
        assert store.states[0].position == 100
    filler.unlink(missing_ok=True)
    assert model.restore_longest(store, list(range(3, 103))).position == 100
    store.save(session)
    assert model.restore_longest(store, session.tokens).position == 600
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    for refused in (lambda: store.save(session), lambda: state_store.StateStore(folder / "states")):
        try:
            refused()
        except SalaError as error:
            print(type(error).__name__, error)
    """
    tmp_path.joinpath("disk").mkdir()
    prefix = ("unshare", "--mount")
    done = subprocess.run(child(code, tmp_path / "disk", 0, prefix), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *full, saving_error, opening_error = done.stdout.splitlines()
    assert full
    assert all(line.startswith("StateError ") or line == "saved" for line in full)
    assert any("No space left on device" in line or "full" in line for line in full)
    assert saving_error.startswith("StateError ")
    assert "Read-only file system" in saving_error
    assert "is not writable: choose another folder" in opening_error


def test_files_that_nothing_names_go_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(ids: list[int]) -> Session:
        session = model.session()
        session.prefill(ids)
        return session

    model = sala_export.load(tiny_cpu_bundle(), runtime="onnxruntime", threads=1)
    now = 1000.0
    monkeypatch.setattr(state_store, "monotonic", lambda: now)
    prompts = [random_ids(200, seed) for seed in range(4)]
    measure = StateStore(tmp_path / "measure")
    measure.save(read(prompts[0]))
    store = StateStore(tmp_path / "states", max_bytes=int(1.5 * measure.bytes))
    left = store.path / "objects" / "ab" / ("ab" + 62 * "0")  # by a process killed before the index had its state
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(bytes(measure.bytes))
    for ids, later, stays in zip(prompts, (0, 300, 299, 2), (True, True, True, False), strict=True):
        now += later
        store.save(read(ids))
        assert len(store.states) == 1, "the others have left"
        assert left.exists() is stays
    assert_sound(store)
