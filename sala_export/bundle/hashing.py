"""Computes SHA-256 of the files and tensors of a bundle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import BundleError
from ..progress import ProgressCallback
from .manifest import FileEntry

_BLOCK_BYTES = 8 << 20
_MOST_THREADS = 8
"""Disks give no more than so many processors hash: 1.3 GB/s each with SHA instructions."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a file."""

    file: Path
    offset: int
    length: int


class Hashing:
    """Hashes spans in threads of their own, the largest first, while the caller does something else.

    Leaving the `with` block before `result` stops them.
    """

    def __init__(self, spans: Mapping[str, Span]) -> None:
        """Args: `spans` by a name for messages."""
        self._total = sum(span.length for span in spans.values())
        self._versions = {span.file: _version(span.file) for span in spans.values()}
        self._stopped = False
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
        largest_first = sorted(spans.items(), key=lambda item: -item[1].length)
        self._futures: dict[Future[str], tuple[str, int]] = {
            self._pool.submit(self._hash, name, span): (name, span.length) for name, span in largest_first
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped = True
        self._pool.shutdown(cancel_futures=True)

    def watched(self, on_progress: ProgressCallback) -> ProgressCallback:
        """Wrap a progress callback of other work: it raises what `result` would, once a span could not be hashed."""

        def report(phase: str, done: int, total: int, unit: str = "steps") -> None:
            for future in self._futures:
                if future.done():
                    future.result()
            on_progress(phase, done, total, unit)

        return report

    def result(self, on_progress: ProgressCallback) -> dict[str, str]:
        """Wait for the digests, by name, in lower-case hexadecimal digits.

        Raises: BundleError naming a file that cannot be read, ends before a span, or was changed since the start.
        """
        done, digests = 0, {}
        for future in as_completed(self._futures):
            name, length = self._futures[future]
            digests[name] = future.result()
            done += length
            on_progress("hash", done, self._total, "bytes")
        for file, version in self._versions.items():
            if _version(file) != version:
                raise BundleError(f"{file} was changed while it was hashed: try again when nothing writes to it")
        return digests

    def _hash(self, name: str, span: Span) -> str:
        try:
            return self._digest(name, span)
        except OSError as error:
            raise BundleError(f"{span.file} cannot be read: {error.strerror}") from None

    def _digest(self, name: str, span: Span) -> str:
        digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
        with span.file.open("rb", buffering=0) as file:
            file.seek(span.offset)
            left = span.length
            while left and not self._stopped:
                count = file.readinto(memoryview(block)[: min(left, _BLOCK_BYTES)])
                if not count:
                    raise BundleError(
                        f"{span.file} ends {left} bytes before the end of {name}: it is truncated, fetch it again"
                    )
                digest.update(memoryview(block)[:count])
                left -= count
        return digest.hexdigest()


def _version(file: Path) -> tuple[int, int]:
    """What changes with the content of a file: its size, and when it was written."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def hash_files(directory: Path, paths: Sequence[Path], on_progress: ProgressCallback) -> tuple[FileEntry, ...]:
    """Make the entries of `paths`, which lie below `directory`, in order of their names."""
    spans = {path.relative_to(directory).as_posix(): Span(path, 0, path.stat().st_size) for path in sorted(paths)}
    with Hashing(spans) as hashing:
        digests = hashing.result(on_progress)
    return tuple(FileEntry(path=name, bytes=span.length, sha256=digests[name]) for name, span in spans.items())
