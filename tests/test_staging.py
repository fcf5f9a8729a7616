"""Directories that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sala_export.errors import BuildError, DiskFullError, RequestError
from sala_export.staging import MARKER, resumable_directory, staged_directory


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


def test_directory_of_a_live_writer_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    (tmp_path / ".out.dead.partial").mkdir()
    with staged_directory(tmp_path / "out", marker=MARKER) as first:
        assert not (tmp_path / ".out.dead.partial").exists()
        with (
            pytest.raises(RequestError, match="exists"),
            staged_directory(tmp_path / "out", marker=MARKER) as second,
        ):
            assert first.is_dir()
            assert second != first
            (tmp_path / "out").mkdir()
        (tmp_path / "out").rmdir()
    assert (tmp_path / "out").is_dir()


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
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
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


def test_work_in_progress_is_not_taken_up(tmp_path: Path) -> None:
    with resumable_directory(tmp_path / "out", marker=MARKER, force=False, key="a") as first:
        first.keep()
        with (
            pytest.raises(BuildError),
            resumable_directory(tmp_path / "out", marker=MARKER, force=False, key="a") as second,
        ):
            assert second.path != first.path
            assert not second.resumed
            raise BuildError("enough")
        assert first.path.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_one_of_several_halves_is_taken_up(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            pytest.raises(BuildError),
            resumable_directory(tmp_path / "out", marker=MARKER, force=False, key="a") as outer,
            resumable_directory(tmp_path / "out", marker=MARKER, force=False, key="a") as inner,
        ):
            outer.keep()
            inner.keep()
            raise BuildError("failed")
        assert len(list(tmp_path.iterdir())) == 2
    with resumable_directory(tmp_path / "out", marker=MARKER, force=False, key="a") as staging:
        assert staging.resumed
        assert [path.name for path in tmp_path.iterdir()] == [staging.path.name]
