"""Hashing of bundle files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..progress import Progress
from .manifest import FileEntry

_BLOCK_BYTES = 8 * 2**20


def hash_files(directory: Path, paths: list[Path], on_progress: Progress, phase: str) -> tuple[FileEntry, ...]:
    """Entries of `paths`, which lie below `directory`, in order of their names."""
    sizes = {path: path.stat().st_size for path in sorted(paths)}
    total, done = sum(sizes.values()), 0
    entries = []
    for path, size in sizes.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                on_progress(phase, done, total, "bytes")
        relative = path.relative_to(directory).as_posix()
        entries.append(FileEntry(path=relative, bytes=size, sha256=digest.hexdigest()))
    return tuple(entries)
