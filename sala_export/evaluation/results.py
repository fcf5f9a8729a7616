"""Results as lines of JSON, which are kept as they come, so that a run that was ended goes on later.

The first line says what was asked. A line is written whole and reaches the disk before the next item begins. If a kill
has left half a line at the end, it is dropped, and its item is done again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..files import OpenedFile, parse_json
from ..staging import staged_file
from .summary import ANSWER
from .tasks import PERPLEXITY

RESULTS_FILE, SUMMARY_FILE = "results.jsonl", "summary.json"
SCHEMA = 1
"""Version of the lines. It grows when a field changes its name or meaning, or goes."""
_HEADER = "evaluation"
_FIELDS = {
    ANSWER: {"task", "length", "depth", "sample", "score"},
    PERPLEXITY: {"length", "tokens", "nll", "perplexity", "bits_per_byte", "bins"},
}
"""What is read of a result, by its kind."""


class Results:
    """The items that are known."""

    def __init__(self, records: list[dict[str, Any]], descriptor: int | None) -> None:
        """Args: descriptor: of the file that new items are added to. None keeps them in memory alone."""
        self.records = records
        self._descriptor = descriptor

    def add(self, record: dict[str, Any]) -> None:
        """Add an item. It is on the disk when this returns."""
        self.records.append(record)
        if self._descriptor is not None:
            _append(self._descriptor, record)


@contextmanager
def opened_results(folder: Path | None, asked: Mapping[str, Any]) -> Iterator[Results]:
    """Open the results in a folder, which is made if it is missing. None keeps them in memory.

    Args: asked: what the results are of, as plain JSON values.
    Raises: RequestError if the folder has results of something else, or a file that is none of ours; also if another
        process writes there.
    """
    if folder is None:
        yield Results([], None)
        return
    header = {"kind": _HEADER, "schema": SCHEMA, **asked}
    path = folder / RESULTS_FILE
    descriptor = _open(folder, path)
    try:
        records = _read(descriptor, path, header)
        yield Results(records, descriptor)
    finally:
        os.close(descriptor)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary into the folder of results, whole or not at all. Raises: RequestError."""
    with staged_file(folder / SUMMARY_FILE) as file:
        file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _open(folder: Path, path: Path) -> int:
    """Open the file and keep other processes out. Raises: RequestError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"--output {folder} cannot be written: {reason}") from None
    try:
        OpenedFile.open(path, error=RequestError)  # refuses what is no file
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RequestError(f"--output {folder}: another process writes there, wait for its end") from None
    except RequestError:
        os.close(descriptor)
        raise
    return descriptor


def _read(descriptor: int, path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items in the file, which then ends behind a whole line and begins with the header."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    *lines, rest = content.split(b"\n")
    if not lines and not _line(header).startswith(rest):
        raise RequestError(f"{path} has something else than results: choose another --output")
    records = [_object(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if records:
        _require_same(records[0], header, path)
        for number, record in enumerate(records[1:], start=2):
            _require_fields(record, f"{path}:{number}")
    if rest:
        os.ftruncate(descriptor, len(content) - len(rest))
    if not records:
        _append(descriptor, header)
    return records[1:]


def _object(line: bytes, where: str) -> dict[str, Any]:
    record = parse_json(line, where, error=RequestError)
    if not isinstance(record, dict):
        raise RequestError(f"{where} holds {type(record).__name__}, expected an object: choose another --output")
    return record


def _require_fields(record: Mapping[str, Any], where: str) -> None:
    """Raises: RequestError for a record that lacks something of its kind."""
    kind = record.get("kind")
    names = _FIELDS.get(kind) if isinstance(kind, str) else None
    if names is None or not names <= record.keys():
        raise RequestError(f"{where} is no result, or was changed: delete the line, and it is measured again")


def _require_same(found: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Raises: RequestError naming the first difference."""
    if found.get("kind") != _HEADER:
        raise RequestError(f"{path} has something else than results: choose another --output")
    theirs, ours = dict(_flat(found)), dict(_flat(json.loads(json.dumps(asked))))
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            raise RequestError(
                f"{path} has results of other options: {name} is {json.dumps(theirs.get(name))} there and "
                f"{json.dumps(ours.get(name))} here: choose another --output"
            )


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _append(descriptor: int, record: Mapping[str, Any]) -> None:
    line = memoryview(_line(record))
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)
