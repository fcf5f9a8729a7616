"""Weight files beside a graph: the checkpoint's own safetensors bytes, linked or copied, never converted.

ONNX external data is (file, offset, length), so an initializer can point into a safetensors shard. Runtimes refuse
locations outside the graph's folder, and some refuse symbolic links out of it (hub snapshots are such), but all of them
follow hard links. What is linked or copied is the file that was opened, whatever has its name by now.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import DiskFullError
from ..files import OpenedFile
from ..progress import ProgressCallback, silent
from ..specs import format_bytes

logger = logging.getLogger(__name__)

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.ENOENT}
"""The last is of a file that was deleted, and of a system without /proc."""


def copied_bytes(files: Iterable[OpenedFile], directory: Path, *, copy: bool) -> int:
    """Bytes that `place_weights` is bound to copy: all if asked to, else those of other file systems."""
    device = directory.stat().st_dev
    return sum(file.size for file in set(files) if copy or os.fstat(file.descriptor).st_dev != device)


def place_weights(
    files: Iterable[OpenedFile], directory: Path, *, copy: bool, on_progress: ProgressCallback = silent
) -> dict[OpenedFile, str]:
    """Put every file into `directory` under its own name; returns that name by source.

    Hard links where the file system can, else copies; `copy` asks for copies.

    Raises: DiskFullError if a copy would not fit the disk, CheckpointError if a file was cut off meanwhile.
    """
    placed = {file: file.path.name for file in sorted(set(files), key=lambda file: file.path)}
    copies = [file for file, name in placed.items() if copy or not _linked(file, directory / name)]
    needed, free = sum(file.size for file in copies), shutil.disk_usage(directory).free
    if needed > free:
        raise DiskFullError(
            f"not enough disk to copy the weights: {format_bytes(needed)} needed, {format_bytes(free)} free; put the "
            "output on the checkpoint's file system to link them instead"
        )
    if copies and not copy:
        logger.warning("the output is on another file system than the checkpoint: copying %s", format_bytes(needed))
    done = 0
    for source in copies:
        on_progress("copy", done, needed, "bytes")
        _copy(source, directory / placed[source])
        done += source.size
        on_progress("copy", done, needed, "bytes")
    return placed


def _copy(source: OpenedFile, target: Path) -> None:
    with target.open("xb") as file:
        for block in source.blocks(0, source.size):
            file.write(block)


def _linked(source: OpenedFile, target: Path) -> bool:
    try:
        source.link(target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        logger.info("cannot hard-link %s: %s", source, error.strerror)
        return False
    return True
