"""Weight files beside a graph: the checkpoint's own safetensors bytes, linked or copied, never converted.

ONNX external data is (file, offset, length), so an initializer can point into a safetensors shard. Runtimes refuse
locations outside the graph's folder, and some refuse symbolic links out of it (hub snapshots are such), but all of them
follow hard links.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import DiskFullError
from ..progress import ProgressCallback, silent
from ..specs import format_bytes

logger = logging.getLogger(__name__)

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


def copied_bytes(files: Iterable[Path], directory: Path, *, copy: bool) -> int:
    """Bytes that `place_weights` is bound to copy: all if asked to, else those of other file systems."""
    device = directory.stat().st_dev
    sources = {file.resolve(strict=True).stat() for file in files}
    return sum(source.st_size for source in sources if copy or source.st_dev != device)


def place_weights(
    files: Iterable[Path], directory: Path, *, copy: bool, on_progress: ProgressCallback = silent
) -> dict[Path, str]:
    """Put every file into `directory` under its own name; returns that name by source path.

    Hard links where the file system can, else copies; `copy` asks for copies. Symbolic links are resolved first.

    Raises: DiskFullError if a copy would not fit the disk.
    """
    placed = {file: file.name for file in sorted(set(files))}
    sources = {file.resolve(strict=True): directory / name for file, name in placed.items()}
    copies = [source for source, target in sources.items() if copy or not _linked(source, target)]
    needed, free = sum(source.stat().st_size for source in copies), shutil.disk_usage(directory).free
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
        shutil.copyfile(source, sources[source])
        done += source.stat().st_size
        on_progress("copy", done, needed, "bytes")
    return placed


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        logger.info("cannot hard-link %s: %s", source, error.strerror)
        return False
    return True
