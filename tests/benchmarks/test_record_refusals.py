"""What is not recorded: one line says why, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.made_up_figures import (
    NAME,
    RAW,
    ROOT,
    assert_refused,
    copy_of_documents,
    entry,
    first_token,
    gate,
    header,
    kernel,
    times,
    write,
)

from benchmarks import record

Capture = pytest.CaptureFixture[str]

REFUSED: dict[str, tuple[list[Any], str]] = {
    "rehearsal": ([header(rehearsal=True), *times()], "figures of a rehearsal: no document gets them"),
    "rehearsal that is not said": (
        [header(rehearsal=None), *times()],
        "figures.jsonl:1: rehearsal: Input should be a valid boolean, not None",
    ),
    "no GPU": ([header(machine={"gpu": None, "torch": "2.0", "triton": "3.0"}), *times()], "names no GPU"),
    "no commit": ([header(commit=None), *times()], "names no commit"),
    "commit that is none": ([header(commit="main"), *times()], "must be 7 to 40 hexadecimal digits"),
    "no date": ([header(started="yesterday"), *times()], "started: Input should be a valid datetime"),
    "no zone": ([header(started="2001-02-03T04:05:06"), *times()], "started: Input should have timezone info"),
    "nothing measured": ([header(), {"kind": "problem", "where": "A", "message": "b"}], "holds no measured figure"),
    "no header": (times(), "its first line is not the header of a run"),
    "two runs": ([header(), *times(), header()], "figures.jsonl:8: a second run begins here"),
    "unknown kind": ([header(), {"kind": "guess"}], "figures.jsonl:2: has no known kind"),
    "unknown way": (
        [header(), kernel("operator", 1.0, way="guessed")],
        "way: String should match pattern '^(jit|jit-sm86|shipped)$', not 'guessed'",
    ),
    "unknown way of a gate": (
        [header(), gate(way="guessed")],
        "way: String should match pattern '^(jit|jit-sm86|shipped)$', not 'guessed'",
    ),
    "unknown call": (
        [header(), kernel("operator", 1.0, "sort")],
        "case: String should match pattern '^(Lightning|InfLLM-v2)', not 'sort'",
    ),
    "no time": (
        [header(), kernel("operator", 0.0)],
        "figures.jsonl:2: seconds: Input should be greater than 0, not 0.0",
    ),
    "negative time": ([header(), kernel("operator", -1.0)], "seconds: Input should be greater than 0, not -1.0"),
    "endless time": ([header(), kernel("operator", float("inf"))], "seconds: Input should be a finite number, not inf"),
    "text for a time": ([header(), kernel("operator", "1")], "seconds: Input should be a valid number, not '1'"),  # type: ignore[arg-type]
    "half a round": (
        [header(), kernel("operator", 1.0, rounds=2.5)],
        "rounds: Input should be a valid integer, not 2.5",
    ),
    "right without a number": ([header(), gate(error=None)], "passed, though error is inf"),
    "first token without times": (
        [header(), first_token(64, 1.0, 1.0, first_token_seconds=3)],
        "first_token_seconds: Input should be a valid dictionary",
    ),
    "passkey without answers": (
        [header(), {"kind": "passkey", "runtime": "torch", "length": 8, "found": []}],
        "found: Tuple should have at least 1 item",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_and_nothing_written(tmp_path: Path, capsys: Capture, name: str) -> None:
    lines, why = REFUSED[name]
    root = copy_of_documents(tmp_path / "copy")
    assert_refused(root, write(tmp_path / "run", lines), capsys, why)


def test_malformed_line_and_missing_file_are_refused(tmp_path: Path, capsys: Capture) -> None:
    root = copy_of_documents(tmp_path / "copy")
    folder = write(tmp_path / "run", [header(), *times()], end='\n{"kind": "ker\n')
    assert_refused(root, folder, capsys, "figures.jsonl:8: is no JSON")
    assert_refused(root, tmp_path / "nowhere", capsys, "nowhere: cannot be read")


def test_malformed_figures_of_a_rehearsal_are_found_first(tmp_path: Path, capsys: Capture) -> None:
    """So a rehearsal that is refused only for being one has written figures that a run could."""
    root = copy_of_documents(tmp_path / "copy")
    lines = [header(rehearsal=True), kernel("operator", 1.0, way="guessed")]
    assert_refused(root, write(tmp_path / "run", lines), capsys, "way: String should match pattern")


def test_checkout_gets_no_figures_of_a_rehearsal(tmp_path: Path, capsys: Capture) -> None:
    watched = [ROOT / name for name in record.DOCUMENTS.values()]
    before = [path.read_bytes() for path in watched]
    raw = sorted((ROOT / "benchmarks").rglob("*.jsonl"))
    assert record.main([str(write(tmp_path / "run", [header(rehearsal=True), *times()]))]) == 2
    assert "figures of a rehearsal" in capsys.readouterr().err
    assert [path.read_bytes() for path in watched] == before
    assert sorted((ROOT / "benchmarks").rglob("*.jsonl")) == raw


def test_raw_figures_of_another_name_are_refused(tmp_path: Path, capsys: Capture) -> None:
    root = copy_of_documents(tmp_path / "copy")
    folder = write(tmp_path / "run", [header(), *times()])
    assert record.main([str(folder)], root) == 0
    capsys.readouterr()
    shutil.move(root / RAW, root / RAW.replace(NAME, "h100"))
    assert_refused(root, folder, capsys, f"its name must be {Path(RAW).name}")


@pytest.mark.parametrize(
    "marks", ["", "<!-- record: runtimes -->\n", "<!-- record: runtimes -->\n<!-- /record -->\n" * 2]
)
def test_document_without_its_marks_changes_neither(tmp_path: Path, capsys: Capture, marks: str) -> None:
    root = copy_of_documents(tmp_path / "copy")
    (root / "docs" / "runtimes.md").write_text(f"# Runtimes\n{marks}", encoding="utf-8")
    folder = write(tmp_path / "run", [header(), *times()])
    assert_refused(root, folder, capsys, "must have the lines <!-- record: runtimes --> and <!-- /record --> once")


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_disk_that_refuses_leaves_everything_as_it_was(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    root = copy_of_documents(tmp_path / "copy")
    folder = write(tmp_path / "run", [header(), *times(), first_token(1 << 17, 3.0, 0.006)])
    calls: Iterator[int] = iter(range(1, 9))
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    assert_refused(root, folder, capsys, "No space left on device; nothing was changed")


@pytest.mark.parametrize(
    ("predictions", "why"),
    [
        ('[gpus.h100]\n"Lightning" = 3.0\n', "must be seconds above 0 below"),
        (entry("operator", "-1.0"), "must be seconds above 0 below"),
        ("[other]\n", "must have [gpus] alone"),
        ("nonsense", "cannot be read"),
    ],
)
def test_malformed_predictions_are_refused(tmp_path: Path, capsys: Capture, predictions: str, why: str) -> None:
    root = copy_of_documents(tmp_path / "copy", predictions=predictions)
    assert_refused(root, write(tmp_path / "run", [header(), *times()]), capsys, why)
