"""Files that are opened once: what is refused, and that what was opened is what is read."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hostile_files import NO_FILES, put_hole

from sala_export.errors import BundleError, CheckpointError, RequestError
from sala_export.files import MOST_TEXT_BYTES, Directory, OpenedFile, TextFile, absolute, parse_json, read_json


def refusal(action: Callable[[], object]) -> str:
    """The message of the BundleError, which comes at once."""
    begin = time.monotonic()
    with pytest.raises(BundleError) as caught:
        action()
    assert time.monotonic() - begin < 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.touch()
    NO_FILES[kind](path)
    text = refusal(lambda: OpenedFile.open(path, error=BundleError, advice="copy it again"))
    assert text.startswith(f"{path} ")
    assert text.endswith(": copy it again")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_advice_is_not_given_where_the_file_is_not_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    text = refusal(lambda: OpenedFile.open(tmp_path, error=BundleError, advice="copy it again"))
    assert text == f"{tmp_path} cannot be opened: {os.strerror(number)}"


def test_descriptors_are_closed_with_the_last_reference(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    gc.collect()  # errors hold the frames that they passed
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        directory = Directory(tmp_path, error=BundleError)
        directory.open("file")
        with pytest.raises(BundleError, match="folder is not a file"):
            directory.open("folder")
    del directory
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_directory_that_is_replaced_stays_what_was_opened(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    opened = Directory(tmp_path / "old", error=BundleError)
    (tmp_path / "old").rename(tmp_path / "away")
    (tmp_path / "new").rename(tmp_path / "old")
    file = opened.open("file")
    (tmp_path / "away" / "file").unlink()
    assert file.read_all() == b"old"
    assert not opened.has("file")
    assert (tmp_path / "old" / "file").read_text() == "new"


def test_a_file_that_is_cut_off_is_refused_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    file = OpenedFile.open(tmp_path / "file", error=BundleError)
    os.truncate(tmp_path / "file", 60)
    assert file.read(0, 60) == bytes(60)
    assert "file ends before byte 100: it is truncated" in refusal(file.read_all)
    assert "was changed while it was read" in refusal(file.require_unchanged)


CHANGES_OF_THE_INODE = {
    "a link is made": lambda path: path.with_name("new").hardlink_to(path),
    "a link is removed": lambda path: path.with_name("link").unlink(),
    "a link is removed and another made": lambda path: path.with_name("link").rename(path.with_name("moved")),
    "another mode": lambda path: path.chmod(0o600),
    "its name is removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES_OF_THE_INODE)
def test_a_change_is_seen_and_one_of_the_inode_alone_is_none(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one two")
    (tmp_path / "link").hardlink_to(path)
    file, before = OpenedFile.open(path, error=BundleError), path.stat()
    assert file.read(4, 3) == b"two"
    time.sleep(0.02)  # times of writes have steps of milliseconds
    CHANGES_OF_THE_INODE[change](path)
    assert os.fstat(file.descriptor).st_ctime_ns != before.st_ctime_ns
    for _ in range(2):
        file.require_unchanged()
    Path(f"/proc/self/fd/{file.descriptor}").write_bytes(b"one 222")
    assert "file was changed while it was read: try again" in refusal(file.require_unchanged)


@pytest.mark.parametrize("read", [lambda file: file.read(4, 3), lambda file: file.read_all()], ids=["part", "all"])
@pytest.mark.parametrize("link", [False, True])
def test_a_change_is_seen_when_the_time_of_the_last_write_is_set_back(
    tmp_path: Path, read: Callable[[OpenedFile], bytes], link: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one two")
    file, before = OpenedFile.open(path, error=BundleError), path.stat()
    read(file)
    time.sleep(0.02)
    path.write_bytes(b"one 222")
    if link:
        (tmp_path / "link").hardlink_to(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert "file was changed while it was read: try again" in refusal(file.require_unchanged)


def test_the_file_that_is_linked_is_the_one_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    file = OpenedFile.open(path, error=BundleError)
    path.rename(tmp_path / "away")
    path.write_bytes(b"two")
    file.link(tmp_path / "link")
    assert (tmp_path / "link").read_bytes() == b"one"
    file.require_unchanged()
    with pytest.raises(FileExistsError):
        file.link(tmp_path / "link")
    (tmp_path / "away").write_bytes(b"another")
    assert "was changed while it was read" in refusal(lambda: file.link(tmp_path / "second"))
    assert not (tmp_path / "second").exists()


def test_bytes_that_are_read_twice_are_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one two")
    file = OpenedFile.open(tmp_path / "file", error=BundleError)
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    assert file.remembered(0, 3) is None
    for _ in range(2):
        file.remember(0, 3, one)
        file.remember(4, 3, two)
    assert (file.remembered(0, 3), file.remembered(4, 3), file.remembered(0, 7)) == (one, two, None)
    assert "file was changed while it was read: try again" in refusal(lambda: file.remember(0, 3, two))


def test_files_of_a_directory_are_opened_once_and_a_file_that_takes_a_name_is_found(tmp_path: Path) -> None:
    for name in ("kept", "gone", "taken"):
        (tmp_path / name).write_text(name)
    folder = Directory(tmp_path, error=BundleError)
    kept, _, _ = (folder.open(name) for name in ("kept", "gone", "taken"))
    (tmp_path / "gone").unlink()
    folder.require_unchanged()
    (tmp_path / "new").write_text("taken")
    (tmp_path / "new").rename(tmp_path / "taken")
    assert f"{tmp_path / 'taken'} was replaced while it was read: try again" in refusal(folder.require_unchanged)
    assert folder.open("kept") is kept


def test_more_than_the_limit_is_not_read(tmp_path: Path) -> None:
    put_hole(tmp_path / "file")
    file = OpenedFile.open(tmp_path / "file", error=BundleError)
    assert f"has {1 << 40} bytes, expected at most {MOST_TEXT_BYTES}" in refusal(lambda: TextFile.read(file))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"NaN",
        b'{"a": -Infinity}',
        b"[" * 200_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"1" * 5000,
        b"{} {}",
    ],
    ids=["empty", "open", "not UTF-8", "NaN", "Infinity", "deep and open", "deep", "long number", "two values"],
)
def test_what_is_no_json_is_one_line(tmp_path: Path, text: bytes) -> None:
    assert refusal(lambda: parse_json(text, "here", error=BundleError)).startswith("here cannot be read as JSON: ")
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"/file cannot be read as JSON: "):
        read_json(OpenedFile.open(tmp_path / "file", error=CheckpointError), error=CheckpointError)


def test_path_from_a_directory_that_was_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert absolute(Path("a")) == tmp_path / "gone" / "a"
    (tmp_path / "gone").rmdir()
    with pytest.raises(RequestError, match=r"^a: the current directory was removed: change to another one, or give"):
        absolute(Path("a"))
    assert absolute(tmp_path / "a") == tmp_path / "a"
