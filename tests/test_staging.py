"""Directories that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sala_export import staging
from sala_export.errors import BuildError, DiskFullError, RequestError
from sala_export.staging import (
    MARKER,
    OWNER_TEXT,
    require_free_path,
    resumable_directory,
    staged_directory,
    staged_file,
)


def write(path: Path, text: str, *, force: bool = False) -> None:
    with staged_directory(path, marker=MARKER, force=force) as staging:
        (staging / "file").write_text(text, encoding="utf-8")


def test_directory_appears_with_its_marker_and_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [MARKER, "file"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failure_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    with (
        pytest.raises(ZeroDivisionError),
        staged_directory(tmp_path / "out", marker=MARKER, force=True) as staging,
    ):
        (staging / "file").write_text("second", encoding="utf-8")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_error_of_a_write_names_what_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, staged_file(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out")


def test_what_cannot_be_removed_hides_neither_success_nor_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(wrapper: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(wrapper))

    with staged_directory(tmp_path / "out", marker=MARKER) as directory:
        (directory / "file").write_text("whole", encoding="utf-8")
        monkeypatch.setattr(staging, "_clear", failing)
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "whole"
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), staged_file(tmp_path / "file") as file:
        file.touch()
        monkeypatch.setattr(staging, "_clear", failing)
        raise ZeroDivisionError
    (_, told) = caplog.messages
    monkeypatch.undo()
    assert told.startswith(str(tmp_path / ".file.partial"))
    assert "the next run for the same path removes it" in told
    write(tmp_path / "out", "again", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".file.partial", "out"]


def test_force_replaces_what_was_written_before(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    write(tmp_path / "out", "second", force=True)
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_keeps_a_directory_that_was_not_written_here(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(RequestError, match="--force only replaces what this command wrote"):
        write(tmp_path / "out", "mine", force=True)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("force", [False, True])
def test_path_taken_while_writing_is_kept(tmp_path: Path, force: bool) -> None:
    with (
        pytest.raises(RequestError, match=r"out (exists|has no)"),
        staged_directory(tmp_path / "out", marker=MARKER, force=force) as staging,
    ):
        (staging / "file").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "diary").touch()
    assert (tmp_path / "out" / "diary").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_second_writer_of_a_path_is_refused_at_once(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "out", marker=MARKER) as first:
        (first / "file").touch()
        for attempt in (write_out, require_out):
            with pytest.raises(RequestError, match=r"another process is writing .*out: wait for it"):
                attempt(tmp_path)
    assert (tmp_path / "out" / "file").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def write_out(folder: Path) -> None:
    write(folder / "out", "second")


def require_out(folder: Path) -> None:
    require_free_path(folder / "out", marker=MARKER, force=True)


def leave(path: Path, files: dict[str, bytes]) -> Path:
    """The wrapper of `path` as something ended that held these files."""
    wrapper = path.with_name(f".{path.name}.partial")
    wrapper.mkdir()
    for name, content in files.items():
        (wrapper / name).parent.mkdir(exist_ok=True)
        (wrapper / name).write_bytes(content)
    return wrapper


@pytest.mark.parametrize(
    "files", [{}, {"owner": b""}, {"owner": OWNER_TEXT}, {"owner": OWNER_TEXT, "content/file": b"half", "key": b"1 a"}]
)
def test_wrapper_of_a_killed_process_is_taken_over(tmp_path: Path, files: dict[str, bytes]) -> None:
    leave(tmp_path / "out", files)
    write(tmp_path / "out", "whole")
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "files",
    [{"thesis.txt": b"mine"}, {"owner": b"", "thesis.txt": b"mine"}, {"owner": b"me"}, {"owner/file": b"", "key": b""}],
)
def test_wrapper_of_somebody_else_is_refused_and_left(tmp_path: Path, files: dict[str, bytes]) -> None:
    wrapper = leave(tmp_path / "out", files)
    for attempt in (write_out, require_out):
        with pytest.raises(RequestError, match=r"\.out\.partial is in the way, and not of sala-export"):
            attempt(tmp_path)
    assert {str(p.relative_to(wrapper)): p.read_bytes() for p in wrapper.rglob("*") if p.is_file()} == files
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_is_no_wrapper_is_refused_and_left(tmp_path: Path, kind: str) -> None:
    (tmp_path / "there").mkdir()
    wrapper = tmp_path / ".out.partial"
    if kind == "file":
        wrapper.write_text("mine", encoding="utf-8")
    else:
        wrapper.symlink_to("there" if kind == "link" else "nowhere")
    with pytest.raises(RequestError, match="is in the way"):
        write(tmp_path / "out", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.partial", "there"]


def test_names_that_begin_alike_are_left(tmp_path: Path) -> None:
    """`.out.sala.partial` is of `out.sala`, whatever is written to `out`."""
    neighbour = leave(tmp_path / "out.sala", {"owner": OWNER_TEXT, "content/shard": b"hours of work"})
    write(tmp_path / "out", "whole")
    assert (neighbour / "content" / "shard").read_bytes() == b"hours of work"


def test_reader_sees_a_whole_directory_at_every_moment(tmp_path: Path) -> None:
    """While it is replaced, again and again, by this process and another."""
    write(tmp_path / "out", "0")
    code = (
        "import sys; from pathlib import Path; from test_staging import write\n"
        "for number in range(200): write(Path(sys.argv[1]), str(number), force=True)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], env=environment) as writer:
        seen = set()
        while writer.poll() is None:
            seen.add((tmp_path / "out" / "file").read_text(encoding="utf-8"))
    assert writer.returncode == 0
    assert len(seen) > 5
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_on_a_disk_without_exchange_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "first")
    real = staging._rename

    def without_exchange(old: Path, new: Path, flags: int) -> None:
        if flags == staging._RENAME_EXCHANGE:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(old, new, flags)

    monkeypatch.setattr(staging, "_rename", without_exchange)
    with (
        pytest.raises(RequestError, match="this file system cannot exchange two directories"),
        staged_directory(tmp_path / "out", marker=MARKER, force=True),
    ):
        pytest.fail("the work began")
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_does_not_replace_a_link(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(RequestError, match="link is a link, which --force does not replace: give the path"):
        write(tmp_path / "link", "second", force=True)
    assert (tmp_path / "link" / "file").read_text(encoding="utf-8") == "first"


def test_disk_without_locks_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RequestError, match=r"out: its disk locks no files \(No locks available\): choose"):
        write(tmp_path / "out", "first")
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize("limit", [0, 20])
def test_disk_too_full_to_begin_leaves_nothing(tmp_path: Path, limit: int) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path; from sala_export.staging import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "with staged_directory(Path(sys.argv[1]), marker=MARKER): pass"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupt_after_the_exchange_leaves_nothing_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place = staging._put_in_place

    def interrupted(*arguments: Any) -> None:
        put_in_place(*arguments)
        raise KeyboardInterrupt

    write(tmp_path / "out", "first")
    monkeypatch.setattr(staging, "_put_in_place", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        resumable_directory(tmp_path / "out", marker=MARKER, force=True, key="k") as place,
    ):
        (place.path / "file").write_text("second", encoding="utf-8")
        place.keep()
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_long_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="choose a name of at most 200 bytes"):
        write(tmp_path / ("x" * 201), "text")


def begin(path: Path, key: str, error: BaseException | None, *, keep: bool = True, force: bool = False) -> bool:
    """Do half of some work, and end with the error, or do all of it; returns whether an earlier half was there."""
    with resumable_directory(path, marker=MARKER, force=force, key=key) as staging:
        assert staging.resumed == (staging.path / "half").exists()
        if keep:
            (staging.path / "half").touch()
            staging.keep()
        if error is not None:
            raise error
    return staging.resumed


@pytest.mark.parametrize(
    "error", [BuildError("failed"), RequestError("no memory"), KeyboardInterrupt(), SystemExit(143)]
)
def test_kept_work_is_taken_up_by_the_same_work(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        begin(tmp_path / "out", "a", error)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    assert begin(tmp_path / "out", "a", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MARKER, "half"]


def test_kept_work_is_removed_by_other_work_for_the_same_place(tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        begin(tmp_path / "out", "a", BuildError("failed"))
    assert not begin(tmp_path / "out", "b", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [DiskFullError("full"), OSError(28, "No space left on device")])
def test_full_disk_leaves_nothing(tmp_path: Path, error: Exception, keep: bool) -> None:
    with pytest.raises(type(error)):
        begin(tmp_path / "out", "a", error, keep=keep)
    assert list(tmp_path.iterdir()) == []


def test_work_that_asked_for_nothing_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "out", "a", KeyboardInterrupt(), keep=False)
    assert list(tmp_path.iterdir()) == []


def test_empty_key_goes_on_with_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        begin(tmp_path / "out", "", BuildError("failed"))
    assert not begin(tmp_path / "out", "", None)


def test_kept_work_that_was_put_in_its_place_is_not_taken_up(tmp_path: Path) -> None:
    """Killed right after the exchange, the wrapper holds the old directory beside the key of the new one."""
    write(tmp_path / "out", "old")
    with pytest.raises(BuildError):
        begin(tmp_path / "out", "a", BuildError("failed"), force=True)
    content = tmp_path / ".out.partial" / "content"
    (content / MARKER).touch()
    staging._rename(content, tmp_path / "out", staging._RENAME_EXCHANGE)
    assert (content / "file").read_text(encoding="utf-8") == "old"
    assert not begin(tmp_path / "out", "a", None, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
