"""Where states are saved to: paths that are refused before the work, kills, full disks, two writers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.runtime_bundles import tiny_cpu_bundle

from sala_export.errors import SessionError, StateError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session, StateTarget

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts need root")

_CHILD = """
import sys
from pathlib import Path
import sala_export
from sala_export.errors import SalaError
from sala_export.runtime.session import StateTarget
model = sala_export.load(sys.argv[1], runtime="onnxruntime", threads=1)
session = model.session(max_context=512)
session.prefill(list(range(3, 303)))
path = sys.argv[2]
"""


def child(code: str, path: Path, *prefix: str) -> list[str]:
    """A command that runs `code` in a process with a `session` of 300 tokens and the name `path`."""
    return [*prefix, sys.executable, "-c", _CHILD + textwrap.dedent(code), str(tiny_cpu_bundle()), str(path)]


@pytest.fixture
def session(model: Model) -> Session:
    session = model.session(max_context=512)
    session.prefill([5, 17, 42, 99])
    return session


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_target_is_taken_before_the_work_and_saved_to_after_it(session: Session, model: Model, tmp_path: Path) -> None:
    with StateTarget(tmp_path / "a.state") as target:
        target.require_room(model.state_bytes(4))
        with pytest.raises(StateError, match="another process is writing"):
            session.save(tmp_path / "a.state")
        session.save(target)
        with pytest.raises(SessionError, match="written already"):
            session.save(target)
    assert names(tmp_path) == ["a.state"]
    assert (tmp_path / "a.state").stat().st_size == model.state_bytes(4)
    assert model.restore(tmp_path / "a.state").tokens.tolist() == [5, 17, 42, 99]


def test_target_without_a_save_leaves_everything_as_it_was(session: Session, tmp_path: Path) -> None:
    (tmp_path / "old.state").write_text("old")
    with StateTarget(tmp_path / "old.state"), StateTarget(tmp_path / "new.state") as closed:
        assert names(tmp_path) == [".new.state.partial", ".old.state.partial", "old.state"]
    assert names(tmp_path) == ["old.state"]
    assert (tmp_path / "old.state").read_text() == "old"
    with pytest.raises(SessionError, match="is closed"):
        session.save(closed)


def test_save_keeps_the_mode_and_writes_through_a_link(session: Session, model: Model, tmp_path: Path) -> None:
    (tmp_path / "kept.state").touch(mode=0o640)
    (tmp_path / "link.state").symlink_to("kept.state")
    session.save(tmp_path / "link.state")
    assert (tmp_path / "link.state").is_symlink()
    assert stat.S_IMODE((tmp_path / "kept.state").stat().st_mode) == 0o640
    assert model.restore(tmp_path / "kept.state").position == 4


@pytest.mark.parametrize(
    "name", ["fifo", "folder", "loop", "missing/a.state", "link-to-fifo", "null", "folder/", "n" * 220]
)
def test_what_cannot_become_a_state_is_refused_in_one_line(session: Session, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link-to-fifo").symlink_to("fifo")
    (tmp_path / "null").symlink_to(os.devnull)
    before = names(tmp_path)
    for refused in (lambda: StateTarget(f"{tmp_path}/{name}"), lambda: session.save(f"{tmp_path}/{name}")):
        with pytest.raises(StateError, match="cannot be written") as error:
            refused()
        assert "\n" not in str(error.value)
    assert names(tmp_path) == before


def test_room_is_compared_with_the_disk(tmp_path: Path, model: Model) -> None:
    with StateTarget(tmp_path / "a.state") as target:
        with pytest.raises(StateError, match=r"its disk has \d+ MiB free"):
            target.require_room(2**62)
        with pytest.raises(SessionError, match="size is -1"):
            target.require_room(-1)
    with pytest.raises(SessionError, match="tokens is"):
        model.state_bytes(2**31 - 1)


def test_file_size_limit_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        session.save(path)
    except SalaError as error:
        print(error)
    """
    (tmp_path / "a.state").write_text("old")
    done = subprocess.run(child(code, tmp_path / "a.state"), capture_output=True, text=True, check=True)
    assert "at most 4096" in done.stdout
    assert names(tmp_path) == ["a.state"]
    assert (tmp_path / "a.state").read_text() == "old"


@needs_root
def test_full_disk_and_read_only_disk_leave_the_old_state(tmp_path: Path) -> None:
    code = """
    import subprocess
    folder = Path(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    (folder / "a.state").write_text("old")
    for options in ("remount", "remount,ro"):
        subprocess.run(["mount", "-o", options, folder], check=True)
        try:
            session.save(folder / "a.state")
        except SalaError as error:
            print(error)
        print([each.name for each in folder.iterdir()], (folder / "a.state").read_text())
    """
    done = subprocess.run(child(code, tmp_path, "unshare", "--mount"), capture_output=True, text=True, check=True)
    full, kept, read_only, still = done.stdout.splitlines()
    assert "No space left on device" in full
    assert "Read-only file system" in read_only
    assert kept == still == "['a.state'] old"


def test_second_process_is_refused_while_the_first_writes(session: Session, tmp_path: Path) -> None:
    code = """
    with StateTarget(path):
        print("open", flush=True)
        sys.stdin.read()
    """
    path = tmp_path / "a.state"
    with subprocess.Popen(child(code, path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(StateError, match="another process is writing"):
            session.save(path)
        first.stdin.close()
        first.wait()
    session.save(path)
    assert names(tmp_path) == ["a.state"]


@needs_root
def test_killed_saves_of_process_number_one_lose_and_leave_nothing(
    session: Session, model: Model, tmp_path: Path
) -> None:
    """As in a container: each process has the number of the one that was killed."""
    code = """
    import os
    assert os.getpid() == 1
    session.save(path)
    print("saved", flush=True)
    while True:
        session.save(path)
    """
    path = tmp_path / "a.state"
    session.save(path)
    command = child(code, path, "unshare", "--pid", "--fork", "--kill-child")
    left = 0
    for round_ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "saved\n", "what the killed one left does not stop the next"
            time.sleep(0.004 * round_)
            process.kill()
            process.stdout.read()
        assert model.restore(path, max_context=512).position == 300
        left += len(names(tmp_path)) - 1
    assert left > 0, "at least one was killed in a save"
    session.save(path)
    assert names(tmp_path) == ["a.state"]
