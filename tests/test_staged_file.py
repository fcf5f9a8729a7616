"""Files that appear whole or not at all, and what may not be replaced."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sala_export import replaceable, staging
from sala_export.errors import RequestError
from sala_export.staging import MARKER, require_free_path, staged_directory, staged_file


def replace(path: Path, text: str) -> None:
    with staged_file(path) as file:
        file.write_text(text, encoding="utf-8")


def test_file_appears_and_is_replaced_with_its_mode(tmp_path: Path) -> None:
    replace(tmp_path / "plot", "first")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "plot").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "plot").chmod(0o600)
    replace(tmp_path / "plot", "second")
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "second"
    assert stat.S_IMODE((tmp_path / "plot").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["plot"]


@pytest.mark.parametrize("exists", [True, False])
def test_link_is_written_through(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "plot").symlink_to("far/real")
    if exists:
        (tmp_path / "far" / "real").write_text("first", encoding="utf-8")
    replace(tmp_path / "plot", "second")
    assert (tmp_path / "plot").is_symlink()
    assert (tmp_path / "far" / "real").read_text(encoding="utf-8") == "second"
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["real"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "circle"])
def test_what_is_no_file_is_refused_and_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "plot"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to("plot")
    else:
        with socket.socket(socket.AF_UNIX) as endpoint:
            endpoint.bind(str(path))
    before = path.lstat()
    with pytest.raises(RequestError, match="plot is not a file"):
        replace(path, "text")
    assert path.lstat() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plot"]


def test_failed_writing_keeps_the_old_file(tmp_path: Path) -> None:
    replace(tmp_path / "plot", "first")
    with pytest.raises(ZeroDivisionError), staged_file(tmp_path / "plot") as file:
        file.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["plot"]


def test_second_writer_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("plot")
    with staged_file(tmp_path / "plot") as file:
        with pytest.raises(RequestError, match="another process is writing"):
            replace(tmp_path / "link", "second")
        file.write_text("first", encoding="utf-8")
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "first"


def write_directory(path: Path, text: str) -> None:
    with staged_directory(path, marker=MARKER) as directory:
        (directory / "file").write_text(text, encoding="utf-8")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    (path.parent / "else").write_text("theirs", encoding="utf-8")
    path.symlink_to("else")


@pytest.mark.parametrize("make", [make_fifo, make_link])
@pytest.mark.parametrize("exists", [True, False])
def test_what_takes_the_place_of_a_file_during_the_work_is_kept(
    tmp_path: Path, make: Callable[[Path], None], exists: bool
) -> None:
    path = tmp_path / "plot"
    if exists:
        path.touch()
    told = "something else than a file has taken its place" if exists else "was made while this command ran"
    with pytest.raises(RequestError, match=f"plot .*{told}"), staged_file(path) as file:
        file.write_text("ours", encoding="utf-8")
        path.unlink(missing_ok=True)
        make(path)
    assert not stat.S_ISREG(path.lstat().st_mode)
    assert {p.name for p in tmp_path.iterdir()} <= {"plot", "else"}


@pytest.mark.parametrize("has_noreplace", [True, False])
def test_file_that_appears_during_the_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_noreplace: bool
) -> None:
    def without_noreplace(old: Path, new: Path, flags: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    if not has_noreplace:
        monkeypatch.setattr(staging, "_rename", without_noreplace)
        replace(tmp_path / "new", "text")
        (tmp_path / "new").unlink()
    told = "plot was made while this command ran: it is kept"
    with pytest.raises(RequestError, match=told), staged_file(tmp_path / "plot") as file:
        file.write_text("ours", encoding="utf-8")
        (tmp_path / "plot").write_text("theirs", encoding="utf-8")
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["plot"]


def test_mode_is_that_of_the_file_at_the_end_of_the_work(tmp_path: Path) -> None:
    replace(tmp_path / "plot", "first")
    with staged_file(tmp_path / "plot") as file:
        file.write_text("second", encoding="utf-8")
        (tmp_path / "plot").chmod(0o640)
    assert stat.S_IMODE((tmp_path / "plot").stat().st_mode) == 0o640
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "second"


def test_file_that_is_removed_during_the_work_is_written(tmp_path: Path) -> None:
    replace(tmp_path / "plot", "first")
    with staged_file(tmp_path / "plot") as file:
        file.write_text("second", encoding="utf-8")
        (tmp_path / "plot").unlink()
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "second"


def attempts(path: Path) -> tuple[Callable[[], None], ...]:
    """All that writes a path, as functions that fail the test if the work begins."""

    def file() -> None:
        with staged_file(path):
            pytest.fail("the work began")

    def directory() -> None:
        with staged_directory(path, marker=MARKER, force=True):
            pytest.fail("the work began")

    if path.is_file():
        return (file,)
    return (directory, lambda: require_free_path(path, marker=MARKER, force=True))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_another_user_has_in_a_sticky_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "out"
    replace(path, "theirs") if kind == "file" else write_directory(path, "theirs")
    tmp_path.chmod(0o1777)
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    monkeypatch.setattr(replaceable, "_acts_as_any_owner", lambda: False)
    for attempt in attempts(path):
        with pytest.raises(RequestError, match=r"out cannot be written: it is another user's, in a folder where only"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    monkeypatch.setattr(replaceable, "_acts_as_any_owner", lambda: True)
    assert replaceable.obstacle_to_replacing(path) is None


def test_capabilities_of_this_process_are_known() -> None:
    """Also that a process has none of them once it is another user."""
    program = (
        "import os; from sala_export.replaceable import _acts_as_any_owner\n"
        "before = _acts_as_any_owner()\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "print(before, _acts_as_any_owner())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    assert told.stdout.split() == [str(bool(capabilities & 0b1000)), "False"]


@pytest.fixture
def protect() -> Iterator[Callable[[Path, str], None]]:
    """`chattr`, taken back at the end; skips where the disk or the user has no such right."""
    protected: list[tuple[str, Path]] = []

    def change(path: Path, attribute: str) -> None:
        program = shutil.which("chattr")
        if program is None:
            pytest.skip("there is no chattr")
        protected.append((attribute, path))
        if subprocess.run([program, f"+{attribute}", path], capture_output=True, check=False).returncode != 0:
            pytest.skip("files cannot be protected here")

    yield change
    for attribute, path in protected:
        subprocess.run(["chattr", f"-{attribute}", path], capture_output=True, check=False)


@pytest.mark.parametrize("attribute", ["a", "i"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_chattr_protects_is_refused_before_the_work(
    tmp_path: Path, protect: Callable[[Path, str], None], attribute: str, kind: str
) -> None:
    path = tmp_path / "out"
    replace(path, "first") if kind == "file" else write_directory(path, "first")
    protect(path, attribute)
    for attempt in attempts(path):
        with pytest.raises(RequestError, match=r"out cannot be written: it may not be replaced \(chattr \+a or \+i\)"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_that_gives_nothing_away_is_refused_before_the_work(
    tmp_path: Path, protect: Callable[[Path, str], None]
) -> None:
    (tmp_path / "log").mkdir()
    protect(tmp_path / "log", "a")
    for write_one in (replace, write_directory):
        with pytest.raises(RequestError, match=r"out cannot be written: its folder takes files and gives none away"):
            write_one(tmp_path / "log" / "out", "text")
    assert list((tmp_path / "log").iterdir()) == []


# Version 2: the owner and user 4242 read and write, the mask allows both, the group and others nothing.
ACCESS_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, user)
    for tag, permissions, user in (
        (1, 6, 2**32 - 1),
        (2, 6, 4242),
        (4, 0, 2**32 - 1),
        (16, 6, 2**32 - 1),
        (32, 0, 2**32 - 1),
    )
)


def set_access_list(path: Path, name: str) -> None:
    try:
        os.setxattr(path, name, ACCESS_LIST)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("this disk has no access control lists")


def test_access_control_list_is_kept(tmp_path: Path) -> None:
    replace(tmp_path / "plot", "first")
    set_access_list(tmp_path / "plot", "system.posix_acl_access")
    replace(tmp_path / "plot", "second")
    assert os.getxattr(tmp_path / "plot", "system.posix_acl_access") == ACCESS_LIST
    assert (tmp_path / "plot").read_text(encoding="utf-8") == "second"


def test_file_without_access_control_list_gets_none_from_its_folder(tmp_path: Path) -> None:
    replace(tmp_path / "plot", "first")
    (tmp_path / "plot").chmod(0o640)
    set_access_list(tmp_path, "system.posix_acl_default")
    replace(tmp_path / "plot", "second")
    assert "system.posix_acl_access" not in os.listxattr(tmp_path / "plot")
    assert stat.S_IMODE((tmp_path / "plot").stat().st_mode) == 0o640


def test_list_that_cannot_be_kept_leaves_the_group_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(errno.EPERM, "Operation not permitted")

    replace(tmp_path / "plot", "first")
    (tmp_path / "plot").chmod(0o664)
    monkeypatch.setattr("os.getxattr", refuse)
    replace(tmp_path / "plot", "second")
    assert stat.S_IMODE((tmp_path / "plot").stat().st_mode) == 0o604


def test_directory_of_the_process_that_was_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for write_one in (replace, write_directory):
        with pytest.raises(RequestError, match=r"^out: the current directory was removed: change to another one"):
            write_one(Path("out"), "text")
    with pytest.raises(RequestError, match=r"^out: the current directory was removed"):
        require_free_path(Path("out"), marker=MARKER, force=False)
    replace(tmp_path / "out", "text")
