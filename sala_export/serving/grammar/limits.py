"""What a stranger's schema may cost before it is used: its size, its nesting, and the time to prepare a grammar."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import RequestError, RunError
from . import trial

MOST_SCHEMA_BYTES = 64 << 10
MOST_TOOLS_BYTES = 256 << 10
MOST_NESTING = 100
"""The library reads JSON of at most 127 levels, and a schema comes a few levels below the top."""

_AT_A_TIME = 2
_REMEMBERED = 1024
_WAIT_SECONDS = 30


def require_bounded(value: object, *, what: str, most_bytes: int) -> None:
    """Raises: RequestError naming `what` if a value is no JSON, nested too deeply, or too long as JSON text."""
    _require_shallow(value, what)
    try:
        # Halves of surrogate pairs have no bytes.
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:
        raise RequestError(f"{what} is no JSON ({error}): send values that JSON has") from None
    if size > most_bytes:
        raise RequestError(f"{what} has {size} bytes as JSON, at most {most_bytes} are taken: make it shorter")


def _require_shallow(value: object, what: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_NESTING:
            raise RequestError(f"{what} is nested deeper than {MOST_NESTING} levels: make it flatter")
        level = [child for parent in level for child in _children(parent)]


def _children(value: object) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


class Trials:
    """Grammars that were prepared in a process of limited time and memory. Several threads may use it."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._at_a_time = threading.BoundedSemaphore(_AT_A_TIME)
        self._lock = threading.Lock()
        self._found: OrderedDict[bytes, str | None] = OrderedDict()

    def message(self, source: str) -> str | None:
        """What the library finds wrong with a grammar. Empty if nothing, None if it takes more than the limits.

        The answers for the last 1024 grammars are remembered. At most two processes run at a time.

        Raises: RunError if the process cannot run.
        """
        key = hashlib.sha256(source.encode()).digest()
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        with self._at_a_time:
            found = self._tried(source)
        with self._lock:
            self._found[key] = found
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return found

    def _tried(self, source: str) -> str | None:
        # -P: this folder does not hide packages of the same names.
        command = [sys.executable, "-P", str(Path(trial.__file__)), str(self._vocab_size)]
        try:
            done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        except OSError as error:
            raise RunError(f"the process that tries grammars cannot start ({error}): make room for it") from None
        # The system ends it at its limit of time, and the library at that of memory.
        if done.returncode < 0:
            return None
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise RunError(f"the process that tries grammars fails ({' '.join(last)}): install llguidance again")
        return done.stdout.decode()
