"""Computes SHA-256 of the files and tensors of a bundle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..checkpoint.tensor_location import TensorFile
from ..errors import BundleError
from ..files import OpenedFile
from ..progress import ProgressCallback
from .manifest import FileEntry

if TYPE_CHECKING:
    from ..checkpoint.reader import Checkpoint

_MOST_THREADS = 8
"""Disks give no more than so many processors hash: 1.3 GB/s each with SHA instructions."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a file."""

    file: TensorFile
    offset: int
    length: int


class Hashing:
    """Hashes spans in threads of their own, the largest first, while the caller does something else.

    Leaving the `with` block before `result` stops them.
    """

    def __init__(self, spans: Mapping[str, Span]) -> None:
        """Args: `spans` by a name for messages."""
        self._total = sum(span.length for span in spans.values())
        self._files = {span.file for span in spans.values()}
        self._stopped = False
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
        largest_first = sorted(spans.items(), key=lambda item: -item[1].length)
        self._futures: dict[Future[str], tuple[str, int]] = {
            self._pool.submit(self._hash, span): (name, span.length) for name, span in largest_first
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

        Raises: the error of a file that cannot be read, ends before a span, or was changed since it was opened.
        """
        done, digests = 0, {}
        for future in as_completed(self._futures):
            name, length = self._futures[future]
            digests[name] = future.result()
            done += length
            on_progress("hash", done, self._total, "bytes")
        for file in self._files:
            file.require_unchanged()
        return digests

    def _hash(self, span: Span) -> str:
        digest = hashlib.sha256()
        for block in span.file.blocks(span.offset, span.length):
            if self._stopped:
                break
            digest.update(block)
        if not self._stopped:
            span.file.remember(span.offset, span.length, digest.hexdigest())
        return digest.hexdigest()


def tensor_spans(checkpoint: Checkpoint) -> dict[str, Span]:
    """Where each tensor of a checkpoint lies, by its name."""
    return {name: Span(where.file, where.offset, where.length) for name, where in checkpoint.tensors().items()}


def hash_files(directory: Path, paths: Sequence[Path], on_progress: ProgressCallback) -> tuple[FileEntry, ...]:
    """Make the entries of `paths`, which lie below `directory`, in order of their names."""
    files = [OpenedFile.open(path, error=BundleError) for path in sorted(paths)]
    spans = {file.path.relative_to(directory).as_posix(): Span(file, 0, file.size) for file in files}
    with Hashing(spans) as hashing:
        digests = hashing.result(on_progress)
    return tuple(FileEntry(path=name, bytes=span.length, sha256=digests[name]) for name, span in spans.items())
