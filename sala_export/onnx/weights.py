"""Weight files beside a graph: the checkpoint's own safetensors bytes, shared, linked or copied.

ONNX external data is (file, offset, length), so an initializer can point into a safetensors shard. Runtimes refuse
locations outside the graph's folder and symbolic links (hub snapshots are such). `onnx.load`, `onnx.checker` and what
builds on them also refuse a file with more than one hard link. So by default the weights become files of their own,
which share their blocks with the checkpoint where the file system can. What is taken is the file that was opened,
whatever has its name by now. Weights that a tool stores in another order are written, as one more file.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from ..checkpoint.tensor_location import TensorFile
from ..errors import DiskFullError
from ..files import OpenedFile
from ..progress import ProgressCallback, silent
from ..specs import format_bytes

logger = logging.getLogger(__name__)

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.ENOENT}
"""The last is of a file that was deleted, and of a system without /proc."""
_CANNOT_SHARE = {*_CANNOT_LINK, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY}
"""Of an ioctl that the file system or a sandbox does not know, and of files that it does not share."""


def place_weights(
    files: Iterable[TensorFile], directory: Path, *, link: bool, on_progress: ProgressCallback = silent
) -> dict[TensorFile, str]:
    """Put every file into `directory` under its own name; returns that name by source.

    Without `link` they are files of their own, which share their blocks with the sources where the file system can
    (btrfs, xfs), else copies. With `link` they are hard links where the file system can, else copies.

    Raises: DiskFullError if a copy would not fit the disk, CheckpointError if a file was cut off meanwhile.
    """
    placed = {file: file.path.name for file in sorted(set(files), key=lambda file: file.path)}
    copy_weights(share_weights(placed, directory, link=link), directory, link=link, on_progress=on_progress)
    return placed


def share_weights(files: Iterable[TensorFile], directory: Path, *, link: bool) -> list[TensorFile]:
    """Put those files into `directory` that take no room there, and return the others, which are to be copied."""
    wanted = sorted(set(files), key=lambda file: file.path)
    return [file for file in wanted if not placed_without_room(file, directory / file.path.name, link=link)]


def copy_weights(
    files: Collection[TensorFile], directory: Path, *, link: bool, on_progress: ProgressCallback = silent
) -> None:
    """Copy what `share_weights` with the same `link` could not place. Raises: as `place_weights`."""
    if not files:
        return
    needed, free = sum(file.size for file in files), shutil.disk_usage(directory).free
    if needed > free:
        raise DiskFullError(
            f"not enough disk to copy the weights: {format_bytes(needed)} needed, {format_bytes(free)} free; "
            f"{_advice(files, directory, link=link)}"
        )
    stored = [file for file in files if isinstance(file, OpenedFile)]
    if stored:
        size = format_bytes(sum(file.size for file in stored))
        logger.warning("copying %s of weights: %s", size, _advice(stored, directory, link=link))
    done = 0
    on_progress("copy", done, needed, "bytes")
    for source in files:
        for count in source.copied(directory / source.path.name):
            done += count
            on_progress("copy", done, needed, "bytes")


def _advice(files: Iterable[TensorFile], directory: Path, *, link: bool) -> str:
    """How to save the room that copies take."""
    device = directory.stat().st_dev
    if any(isinstance(file, OpenedFile) and os.fstat(file.descriptor).st_dev != device for file in files):
        return "put the output on the checkpoint's file system and link them with --link to save the room"
    if link:
        return "they cannot be linked from there; an output or a checkpoint on btrfs or xfs would share their blocks"
    return (
        "this file system cannot share their blocks as btrfs and xfs do; --link saves the room with hard links, which "
        "onnx.load refuses and every runtime here takes"
    )


def placed_without_room(source: TensorFile, target: Path, *, link: bool) -> bool:
    """Make `target` a hard link to a file, or without `link` a file that shares its blocks. False if that cannot be."""
    if not isinstance(source, OpenedFile):
        return False
    try:
        if link:
            source.link(target)
        else:
            source.share(target)
    except OSError as error:
        if error.errno not in (_CANNOT_LINK if link else _CANNOT_SHARE):
            raise
        logger.info("cannot %s %s: %s", "hard-link" if link else "share the blocks of", source, error.strerror)
        return False
    return True
