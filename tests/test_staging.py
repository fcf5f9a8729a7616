"""Directories that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sala_export.errors import RequestError
from sala_export.staging import MARKER, staged_directory


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
