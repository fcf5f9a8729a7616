"""Hashing beside other work: the digests, what is refused by name, and that threads stop when they are left."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from support.opened_files import opened

from sala_export import files
from sala_export.bundle.hashing import Hashing, Span, hash_files
from sala_export.errors import BundleError
from sala_export.progress import silent

UNREADABLE = Span(opened(Path("/proc/self/mem")), 0, 64)
"""Nothing is mapped at address 0: reading it is an I/O error."""


def test_spans_of_any_place_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 7)
    content = bytes(range(256)) * 3
    (tmp_path / "file").write_bytes(content)
    places = [(0, 0), (0, 1), (5, 7), (1, 699), (700, 68), (768, 0), (0, 768)]
    file = opened(tmp_path / "file")
    spans = {f"{at}+{size}": Span(file, at, size) for at, size in places}
    told: list[tuple[str, int, int, str]] = []
    with Hashing(spans) as running:
        digests = running.result(lambda *step: told.append(step))  # type: ignore[arg-type]
    assert digests == {f"{at}+{size}": hashlib.sha256(content[at : at + size]).hexdigest() for at, size in places}
    assert told[-1] == ("hash", 1543, 1543, "bytes")


def test_files_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/x", "c", "a"):
        (tmp_path / name).write_text(name)
    entries = hash_files(tmp_path, [tmp_path / name for name in ("c", "b/x", "a")], silent)
    assert [(entry.path, entry.bytes) for entry in entries] == [("a", 1), ("b/x", 3), ("c", 1)]
    assert entries[1].sha256 == hashlib.sha256(b"b/x").hexdigest()


def test_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with (
        pytest.raises(BundleError, match=r"/file ends before byte 120: it is truncated"),
        Hashing({"the tensor": Span(opened(tmp_path / "file"), 90, 30)}) as running,
    ):
        running.result(silent)


def test_file_that_cannot_be_read_is_named() -> None:
    with (
        pytest.raises(BundleError, match=r"^/proc/self/mem cannot be read: Input/output error$"),
        Hashing({"a tensor": UNREADABLE}) as running,
    ):
        running.result(silent)


def test_file_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with Hashing({"a tensor": Span(opened(tmp_path / "file"), 0, 100)}) as running:
        with (tmp_path / "file").open("ab") as file:
            file.write(b"more")
        with pytest.raises(BundleError, match=r"/file was changed while it was read: try again"):
            running.result(silent)


def test_other_work_ends_as_soon_as_a_span_fails() -> None:
    steps: list[tuple[str, int, int, str]] = []
    with Hashing({}) as running:
        running.watched(lambda *step: steps.append(step))("work", 1, 2, "bytes")  # type: ignore[arg-type]
    assert steps == [("work", 1, 2, "bytes")]

    def work(running: Hashing) -> None:
        report = running.watched(silent)
        while time.monotonic() - begin < 30:
            report("work", 1, 2)
            time.sleep(0.001)

    begin = time.monotonic()
    with (
        Hashing({"unreadable": UNREADABLE}) as running,
        pytest.raises(BundleError, match="/proc/self/mem cannot be read"),
    ):
        work(running)
    assert time.monotonic() - begin < 5


def test_leaving_stops_the_threads(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as hole:
        hole.truncate(1 << 42)
    endless = Span(opened(tmp_path / "file"), 0, 1 << 42)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Hashing({str(i): endless for i in range(20)}):
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 5
