"""Results in a folder: cut at any byte, of other options, of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sala_export.errors import RequestError
from sala_export.evaluation.results import RESULTS_FILE, opened_results

ASKED: dict[str, Any] = {"model": {"name": "m"}, "options": {"lengths": [4096, 8192], "seed": 0}}
RECORDS: list[dict[str, Any]] = [
    {
        "kind": "answer",
        "task": "passkey",
        "length": 4096,
        "depth": 0.5,
        "sample": sample,
        "score": 0.5,
        "text": "ß\n",
    }
    for sample in range(3)
]


def written(folder: Path) -> bytes:
    with opened_results(folder, ASKED) as results:
        for record in RECORDS:
            results.add(record)
    return (folder / RESULTS_FILE).read_bytes()


def test_results_that_are_cut_at_any_byte_go_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    assert [json.loads(line) for line in whole.splitlines()][1:] == RECORDS
    cut = tmp_path / "cut"
    cut.mkdir()
    for size in range(len(whole) + 1):
        (cut / RESULTS_FILE).write_bytes(whole[:size])
        with opened_results(cut, ASKED) as results:
            known = len(results.records)
            assert results.records == RECORDS[: max(whole[:size].count(b"\n") - 1, 0)]
            for record in RECORDS[known:]:
                results.add(record)
        assert (cut / RESULTS_FILE).read_bytes() == whole


def spoil_length(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[4096, 8192]", b"[4096]"))


BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "other options": (spoil_length, ["options.lengths is [4096] there and [4096, 8192] here"]),
    "other options, then half a line": (
        lambda path: (spoil_length(path), path.write_bytes(path.read_bytes() + b'{"ki')),
        ["options.lengths is [4096] there"],
    ),
    "result without a score": (
        lambda path: path.write_bytes(path.read_bytes().replace(b', "score": 0.5', b"", 1)),
        [f"{RESULTS_FILE}:2 is no result"],
    ),
    "result of no kind": (
        lambda path: path.write_bytes(path.read_bytes() + b"{}\n"),
        [f"{RESULTS_FILE}:5 is no result"],
    ),
    "another option": (
        lambda path: path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 0, "new": 1')),
        ["options.new is 1 there and null here"],
    ),
    "a line that is no JSON": (
        lambda path: path.write_bytes(path.read_bytes() + b"{]\n"),
        [":5 cannot be read as JSON"],
    ),
    "a line that is no object": (lambda path: path.write_bytes(path.read_bytes() + b"[]\n"), [":5 holds list"]),
    "another program's": (lambda path: path.write_bytes(b'{"kind": "run"}\n'), ["something else than results"]),
    "half of something else": (lambda path: path.write_bytes(b"my notes"), ["something else than results"]),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ["cannot be written"]),
}


@pytest.mark.parametrize("case", BAD)
def test_folder_of_something_else_is_refused_and_stays(case: str, tmp_path: Path) -> None:
    written(tmp_path)
    spoil, words = BAD[case]
    path = tmp_path / RESULTS_FILE
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(RequestError) as raised, opened_results(tmp_path, ASKED):
        pass
    assert all(word in str(raised.value) for word in words)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        opened_results(tmp_path / "a" / "b", ASKED),
        pytest.raises(RequestError, match="another process writes there"),
        opened_results(tmp_path / "a" / "b", ASKED),
    ):
        pass
