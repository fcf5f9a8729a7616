"""Directories that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RequestError

MARKER = ".sala-export"
"""Written into directories that have no file of their own to know them by."""

_SUFFIX = ".partial"
_LONGEST_NAME_BYTES = 200  # file systems allow 255, and a suffix is added while writing


def require_free_path(path: Path, *, marker: str, force: bool) -> None:
    """Refuse an output path that is taken, or whose parent cannot hold it.

    With `force`, a directory that holds a file `marker` may be replaced: only what an earlier run wrote there, so that
    a slip of the keyboard does not delete a home directory.

    Raises: RequestError.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise RequestError(f"{path.name[:40]}...: choose a name of at most {_LONGEST_NAME_BYTES} bytes")
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent} is not a directory: create it before writing {path.name} there")
    if path.exists() or path.is_symlink():
        if not force:
            raise RequestError(f"{path} exists: choose another place, or replace it with --force")
        if path.is_symlink() or not (path / marker).is_file():
            raise RequestError(f"{path} has no {marker}: --force only replaces what this command wrote")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"{path.parent} is not writable: choose another place")


@contextmanager
def staged_directory(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `path` that becomes `path` when the block succeeds.

    It gets an empty file `marker` if the block wrote none. If the block raises, nothing is left behind. What a killed
    process left for the same `path` is removed first.

    Raises: RequestError as `require_free_path`, also if `path` was taken while the block ran.
    """
    path = path.absolute()
    require_free_path(path, marker=marker, force=force)
    _remove_abandoned(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent))
    lock = os.open(staging, os.O_RDONLY)
    try:
        # Held while this process lives: how a later one knows that the directory is not abandoned.
        fcntl.flock(lock, fcntl.LOCK_EX)
        staging.chmod(0o777 & ~_umask())
        yield staging
        if not (staging / marker).exists():
            (staging / marker).touch()
        _sync_tree(staging)
        require_free_path(path, marker=marker, force=force)
        _put_in_place(staging, path)
    finally:
        if staging.exists():
            shutil.rmtree(staging)
        os.close(lock)
    _sync(path.parent)


def _put_in_place(staging: Path, path: Path) -> None:
    """Rename, moving what stands there aside first: at every moment the old or the new directory is whole."""
    if not path.exists():
        staging.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent))
    path.rename(aside / path.name)
    staging.rename(path)
    shutil.rmtree(aside)


def _remove_abandoned(path: Path) -> None:
    for sibling in path.parent.iterdir():
        if sibling.name.startswith(f".{path.name}.") and sibling.name.endswith(_SUFFIX) and sibling.is_dir():
            lock = os.open(sibling, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another process is writing there
            else:
                shutil.rmtree(sibling)
            finally:
                os.close(lock)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_tree(directory: Path) -> None:
    for root, _, files in os.walk(directory):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
