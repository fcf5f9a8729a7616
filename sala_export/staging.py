"""Makes directories and files that appear whole or not at all, whatever ends the process.

What is made for `NAME` lies in a wrapper beside it, the directory `.NAME.partial`, until it is whole:

* `owner`, written first, tells that the wrapper is ours. So nothing else of that name is ever taken or removed.
* `content` is the directory or file to be. One rename puts it in its place, or one exchange with what stands there.
* `key`, for work that can go on after an interruption, is of what `content` holds a part of.

The `owner` is locked with flock for as long as somebody writes. So a second writer of the same path knows at once, and
what a killed process left is known by its lock being free, whatever number processes have. Saved states follow the same
rules (runtime/src/base/replaced_file.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import DiskFullError, RequestError
from .files import absolute
from .replaceable import obstacle_to_replacing, take_over_attributes

logger = logging.getLogger(__name__)

MARKER = ".sala-export"
"""Name of a file that marks directories which have no file of their own to know them by."""

OWNER_TEXT = b"sala-export removes this directory with its next run\n"
"""The whole content of a wrapper's `owner`."""

_OWNER, _CONTENT, _KEY = "owner", "content", "key"
_LONGEST_NAME_BYTES = 200  # file systems allow 255, and the wrapper's name is longer

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_NO_SURPRISE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Of an open: no link is followed and no other end waited for."""

_OF_ANOTHER_KIND = (errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EISDIR, errno.ENXIO)

_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

_NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def require_free_path(path: Path, *, marker: str, force: bool) -> None:
    """Refuse an output path that is taken, that another process is writing, or whose parent cannot hold it.

    With `force`, a directory that holds a file `marker` may be replaced. So `force` deletes only what an earlier run
    wrote, and a typing error does not delete a home directory.

    Raises: RequestError.
    """
    wrapper = _wrapper_of(absolute(path))
    _require_free(path, marker=marker, force=force)
    if os.path.lexists(wrapper):
        with _writable(path), contextlib.suppress(FileNotFoundError):  # its writer has just finished
            os.close(_locked(wrapper, path, is_new=False))


def _require_free(path: Path, *, marker: str, force: bool) -> None:
    _require_place(path)
    if path.exists() or path.is_symlink():
        if not force:
            raise RequestError(f"{path} exists: choose another place, or replace it with --force")
        if path.is_symlink():
            raise RequestError(f"{path} is a link, which --force does not replace: give the path that it leads to")
        if not (path / marker).is_file():
            raise RequestError(f"{path} has no {marker}: --force only replaces what this command wrote")
    _require_replaceable(path)


def _require_place(path: Path) -> None:
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise RequestError(f"{path.name[:40]}...: choose a name of at most {_LONGEST_NAME_BYTES} bytes")
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent} is not a directory: create it before writing {path.name} there")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"{path.parent} is not writable: choose another place")


def _require_replaceable(path: Path) -> None:
    obstacle = obstacle_to_replacing(path)
    if obstacle is not None:
        raise RequestError(f"{path} cannot be written: {obstacle}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Staging:
    """A directory that becomes another one when its work is done."""

    path: Path
    resumed: bool
    """True if an earlier run of the same work left the directory, with what it had finished."""
    key: str

    def keep(self) -> None:
        """Keep the directory after an interruption or a failed stage, for the next run with the same key."""
        key = self.path.with_name(_KEY)
        unfinished = key.with_suffix(".new")
        unfinished.write_text(_key_line(self.path, self.key), encoding="utf-8")
        _sync(unfinished)
        unfinished.rename(key)
        _sync(key.parent)


@contextmanager
def staged_directory(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` when the block succeeds.

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
    path = absolute(path)
    _require_free(path, marker=marker, force=force)
    with _naming(path), _locked_wrapper(path) as wrapper:
        worth_keeping = False
        try:
            with _writable(path):
                if path.exists():
                    _require_exchange(wrapper, path)
                resumed = _holds_part_of(wrapper, key)
                if not resumed:
                    _clear(wrapper)
                    (wrapper / _CONTENT).mkdir()
            staging = Staging(path=wrapper / _CONTENT, resumed=resumed, key=key)
            yield staging
            if not (staging.path / marker).exists():
                (staging.path / marker).touch()
            _sync_tree(staging.path)
            _require_free(path, marker=marker, force=force)
            _put_in_place(staging.path, path, marker)
        except BaseException as error:
            worth_keeping = _holds_part_of(wrapper, key) and not isinstance(error, DiskFullError | OSError)
            raise
        finally:
            if not worth_keeping:
                _remove(wrapper)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which becomes `path` when the block succeeds.

    A file that stands there is replaced, and its mode, owner and access control list are kept. If `path` is a link,
    what it leads to is replaced. If the block raises, everything is as it was.

    Raises: RequestError if `path` is something else than a file, cannot be written, or is being written by another
        process; also if a file appeared there, or something else took its place, while the block ran.
    """
    target = Path(os.path.realpath(absolute(path)))
    _require_place(target)
    is_there = os.path.lexists(target)
    if is_there and not stat.S_ISREG(target.lstat().st_mode):
        raise RequestError(f"{path} is not a file: choose another name")
    _require_replaceable(target)
    with _naming(target), _locked_wrapper(target) as wrapper:
        content = wrapper / _CONTENT
        try:
            with _writable(target):
                _clear(wrapper)
            yield content
            if is_there and os.path.lexists(target):
                _replace_file(content, target)
            else:
                _put_new_file(content, target)
            _sync(target.parent)
        finally:
            _remove(wrapper)


def _replace_file(content: Path, target: Path) -> None:
    before = target.lstat()
    if not stat.S_ISREG(before.st_mode):
        raise RequestError(f"{target} cannot be written: something else than a file has taken its place")
    take_over_attributes(content, target, before)
    _sync(content)
    content.rename(target)


def _put_new_file(content: Path, target: Path) -> None:
    _sync(content)
    try:
        _rename_to_free(content, target)
    except FileExistsError:
        raise RequestError(f"{target} was made while this command ran: it is kept, choose another path") from None


def _put_in_place(content: Path, path: Path, marker: str) -> None:
    """One rename or one exchange: at every moment the old or the new directory stands at `path`."""
    if path.exists():
        _rename(content, path, _RENAME_EXCHANGE)
        if not (content / marker).is_file():
            _rename(content, path, _RENAME_EXCHANGE)
            raise RequestError(f"{path} was replaced while this command ran, by what it did not write: it is kept")
    else:
        _rename_to_free(content, path)
    _sync(path.parent)


def _rename_to_free(content: Path, path: Path) -> None:
    """Rename to a path that nothing has. Raises: FileExistsError, as far as this file system can tell."""
    try:
        _rename(content, path, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        content.rename(path)


def _require_exchange(wrapper: Path, path: Path) -> None:
    """Try an exchange before the work whose result needs one."""
    one, other = wrapper / "one", wrapper / "other"
    for probe in (one, other):
        probe.mkdir(exist_ok=True)
    try:
        _rename(one, other, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
        raise RequestError(
            f"{path}: this file system cannot exchange two directories, so --force would leave a moment without "
            "either: remove it first, or choose another disk"
        ) from None
    for probe in (one, other):
        probe.rmdir()


def _rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2), which Python does not have."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd = -100
    if libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(old), None, str(new))


def _wrapper_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Say of what fails here that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}; choose another place") from None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give what fails here without a name, as a write to an open file does, the name of what was to be written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_DISK:
            error.filename = str(path)
        raise


@contextmanager
def _locked_wrapper(path: Path) -> Iterator[Path]:
    """The wrapper of `path`, with its `owner` and what an earlier run left, locked for as long as the block runs."""
    wrapper, lock = _wrapper_of(path), None
    while lock is None:
        is_new = False
        with _writable(path):
            try:
                with contextlib.suppress(FileExistsError):
                    wrapper.mkdir(mode=0o700)
                    is_new = True
                lock = _claimed(wrapper, path, is_new=is_new)
            except OSError:
                if is_new:
                    _remove_if_empty(wrapper)
                raise
    try:
        yield wrapper
    finally:
        os.close(lock)


def _claimed(wrapper: Path, path: Path, *, is_new: bool) -> int | None:
    """Lock a wrapper and write its `owner`. None if the process that had it has just removed it."""
    try:
        lock = _locked(wrapper, path, is_new=is_new)
    except FileNotFoundError:
        return None
    try:
        if _is_at(lock, wrapper / _OWNER):
            _claim(wrapper, lock)
            return lock
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _locked(wrapper: Path, path: Path, *, is_new: bool) -> int:
    """Open and lock the `owner` of a wrapper, which an empty one gets now.

    It is a file, and open for writing, because NFS locks nothing else.

    Raises: RequestError if another process has it, or if the wrapper is not ours; FileNotFoundError if it is gone.
    """
    with _opened_wrapper(wrapper, is_new=is_new) as folder:
        with _in_the_way_of_another_kind(wrapper):
            owner = os.open(_OWNER, os.O_RDWR | os.O_CREAT | _NO_SURPRISE, 0o600, dir_fd=folder)
        try:
            _lock(owner, wrapper, path)
            if not _is_ours(folder, owner):
                raise _in_the_way(wrapper)
        except BaseException:
            os.close(owner)
            raise
    return owner


def _lock(owner: int, wrapper: Path, path: Path) -> None:
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(f"another process is writing {path}: wait for it, or choose another path") from None
    except OSError as error:
        if not os.pread(owner, 1, 0):
            _remove_new(wrapper)
        raise RequestError(f"{path}: its disk locks no files ({error.strerror}): choose another disk") from None


@contextmanager
def _opened_wrapper(wrapper: Path, *, is_new: bool) -> Iterator[int]:
    """A wrapper that may be ours, for as long as the block runs."""
    with _in_the_way_of_another_kind(wrapper):
        folder = os.open(wrapper, os.O_RDONLY | os.O_DIRECTORY | _NO_SURPRISE)
    try:
        entries = set(os.listdir(folder))  # noqa: PTH208 -- of a descriptor
        # Whoever made it could put something else in the place of what is written there.
        is_of_another_user = not is_new and os.fstat(folder).st_uid != os.geteuid()
        if is_of_another_user or (entries and _OWNER not in entries):
            raise _in_the_way(wrapper)
        yield folder
    finally:
        os.close(folder)


@contextmanager
def _in_the_way_of_another_kind(wrapper: Path) -> Iterator[None]:
    """Tell what is not of the kind that we make from what this process or its disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_ANOTHER_KIND:
            raise _in_the_way(wrapper) from None
        raise


def _is_ours(folder: int, owner: int) -> bool:
    """Whether the `owner` of a wrapper says so. A kill may have been faster than its writing."""
    if not stat.S_ISREG(os.fstat(owner).st_mode):
        return False
    text = os.pread(owner, len(OWNER_TEXT) + 1, 0)
    return text == OWNER_TEXT or (not text and set(os.listdir(folder)) == {_OWNER})


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _claim(wrapper: Path, lock: int) -> None:
    """Write the `owner` of a new wrapper."""
    if os.pread(lock, 1, 0):
        return
    written = 0
    try:
        while written < len(OWNER_TEXT):
            written += os.pwrite(lock, OWNER_TEXT[written:], written)
        os.fsync(lock)
        _sync(wrapper)
    except BaseException:
        _remove_new(wrapper)  # part of the line would not be known again
        raise


def _remove_new(wrapper: Path) -> None:
    (wrapper / _OWNER).unlink(missing_ok=True)
    _remove_if_empty(wrapper)


def _remove_if_empty(wrapper: Path) -> None:
    with contextlib.suppress(OSError):
        wrapper.rmdir()


def _in_the_way(wrapper: Path) -> RequestError:
    return RequestError(f"{wrapper} is in the way, and not of sala-export: move it elsewhere, or choose another path")


def _key_line(content: Path, key: str) -> str:
    """What `key` holds: the number of the directory too, for after an exchange another one has its name."""
    return f"{content.stat().st_ino} {key}"


def _holds_part_of(wrapper: Path, key: str) -> bool:
    """True if the work of this key is there and to be kept. An empty key has none."""
    file, content = wrapper / _KEY, wrapper / _CONTENT
    if not key or not file.is_file() or not content.is_dir():
        return False
    return file.read_text(encoding="utf-8", errors="replace") == _key_line(content, key)


def _clear(wrapper: Path) -> None:
    """Remove everything but the owner. The key goes first, so that half a directory is never taken up."""
    (wrapper / _KEY).unlink(missing_ok=True)
    for entry in sorted(wrapper.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _OWNER:
            entry.unlink()


def _remove(wrapper: Path) -> None:
    """Remove a wrapper. The owner goes last, so that what a kill leaves is still known.

    What the work gave, or why it failed, counts more than what cannot be removed after it. So that is only a warning.
    """
    try:
        _clear(wrapper)
        (wrapper / _OWNER).unlink()
    except OSError as error:
        reason = error.strerror
        logger.warning("%s cannot be removed now (%s): the next run for the same path removes it", wrapper, reason)
        return
    _remove_if_empty(wrapper)  # the next writer may have taken it over already


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
