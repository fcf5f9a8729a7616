"""Makes directories that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import DiskFullError, RequestError

MARKER = ".sala-export"
"""Name of a file that marks directories which have no file of their own to know them by."""

_SUFFIX = ".partial"
_KEY_FILE = ".resume"
"""In a staging directory that is worth going on with: the key of the work that it holds a part of."""

_LONGEST_NAME_BYTES = 200  # file systems allow 255, and a suffix is added while writing


def require_free_path(path: Path, *, marker: str, force: bool) -> None:
    """Refuse an output path that is taken, or whose parent cannot hold it.

    With `force`, a directory that holds a file `marker` may be replaced. So `force` deletes only what an earlier run
    wrote, and a typing error does not delete a home directory.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Staging:
    """A directory that becomes another one when its work is done."""

    path: Path
    resumed: bool
    """True if an earlier run of the same work left the directory, with what it had finished."""
    key: str

    def keep(self) -> None:
        """Keep the directory after an interruption or a failed stage, for the next run with the same key."""
        unfinished = self.path / f"{_KEY_FILE}.new"
        unfinished.write_text(self.key, encoding="utf-8")
        _sync(unfinished)
        unfinished.rename(self.path / _KEY_FILE)
        _sync(self.path)

    @property
    def is_kept(self) -> bool:
        return (self.path / _KEY_FILE).is_file()


@contextmanager
def staged_directory(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `path` that becomes `path` when the block succeeds.

    It gets an empty file `marker` if the block wrote none. If the block raises, nothing is left behind. What a killed
    process left for the same `path` is removed first.

    Raises: RequestError as `require_free_path`, also if `path` was taken while the block ran.
    """
    with resumable_directory(path, marker=marker, force=force, key="") as staging:
        yield staging.path


@contextmanager
def resumable_directory(path: Path, *, marker: str, force: bool, key: str) -> Iterator[Staging]:
    """As `staged_directory`, but work that the block asks to `keep` outlives a failure, until it is taken up again.

    The next call for the same `path` goes on in the kept directory if its `key` is equal, and removes it otherwise. A
    block that finds the disk full (`DiskFullError`, or any `OSError`) leaves nothing, kept or not.

    Args: `key` stands for everything that decides what the work gives; an empty one never goes on with anything.
    Raises: RequestError as `require_free_path`, also if `path` was taken while the block ran.
    """
    path = path.absolute()
    require_free_path(path, marker=marker, force=force)
    found = _take_up(path, key)
    directory, lock = found or _new(path)
    staging = Staging(path=directory, resumed=found is not None, key=key)
    worth_keeping = False
    try:
        directory.chmod(0o777 & ~_umask())
        yield staging
        if not (directory / marker).exists():
            (directory / marker).touch()
        (directory / _KEY_FILE).unlink(missing_ok=True)
        _sync_tree(directory)
        require_free_path(path, marker=marker, force=force)
        _put_in_place(directory, path)
    except BaseException as error:
        worth_keeping = staging.is_kept and not isinstance(error, DiskFullError | OSError)
        raise
    finally:
        if directory.exists() and not worth_keeping:
            shutil.rmtree(directory)
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


def _new(path: Path) -> tuple[Path, int]:
    """An empty directory and its lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent))
        lock = _locked(directory)
        if lock is not None:
            return directory, lock
        # Another run found it before it was locked, took it for abandoned and removes it.


def _take_up(path: Path, key: str) -> tuple[Path, int] | None:
    """Of what earlier runs left for `path`: a directory with this key, and its lock; all others are removed."""
    found = None
    for sibling in sorted(path.parent.iterdir()):
        if not (sibling.name.startswith(f".{path.name}.") and sibling.name.endswith(_SUFFIX) and sibling.is_dir()):
            continue
        lock = _locked(sibling)
        if lock is None:
            continue  # another process is writing there
        if key and found is None and _key_of(sibling) == key:
            found = sibling, lock
            continue
        # The key goes first, so that half a directory is never taken up.
        (sibling / _KEY_FILE).unlink(missing_ok=True)
        shutil.rmtree(sibling)
        os.close(lock)
    return found


def _key_of(directory: Path) -> str | None:
    file = directory / _KEY_FILE
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _locked(directory: Path) -> int | None:
    """Lock a directory for as long as this process lives, which tells others that it is not abandoned.

    Returns: the lock, to be closed in the end; None if another process has it or the directory is gone.
    """
    try:
        lock = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    if not directory.exists():
        os.close(lock)
        return None
    return lock


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
