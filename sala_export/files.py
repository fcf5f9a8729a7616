"""Opens files so that what was checked is what is read.

A path names whatever lies there at the moment. So a file is opened once, its kind and size are looked at through the
descriptor, and it is read through the same descriptor, whatever takes its name meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, RequestError

MOST_TEXT_BYTES = 64 << 20
"""Limit of the text files of bundles and checkpoints: the largest tokenizer.json in use is about half of it."""

_BLOCK_BYTES = 8 << 20
_COPIED_BYTES = 64 << 20
"""Most of one copy inside the kernel, which no signal interrupts."""

_FICLONE = 0x40049409
"""The ioctl of Linux that makes a file share the blocks of another one."""
_NO_COPY_INSIDE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""What copy_file_range(2) says of file systems and sandboxes that it does not work between or in."""

_OF_PROCESS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
"""What says nothing about the file, but about who opens it."""


class OpenedFile:
    """A regular file, open for reading. It is closed when nothing refers to it any more."""

    def __init__(self, path: Path, descriptor: int, status: os.stat_result, error: type[InputError]) -> None:
        self.path = path
        """For messages."""
        self.descriptor = descriptor
        self.size = status.st_size
        """Bytes when it was opened."""
        self._status = status
        self._hashes: dict[tuple[int, int], str] = {}
        self.error = error
        """What is raised for whatever is wrong with the file."""
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def open(
        cls, path: Path, *, error: type[InputError], directory: Directory | None = None, advice: str = ""
    ) -> OpenedFile:
        """Open a file; with `directory`, the one of this relative path below it.

        Raises: `error`, in one line, for what is missing, cannot be read or is no regular file. The line ends with
            `advice`, unless this process has no right to the file, or too many others open.
        """
        shown = path if directory is None else directory.path / path
        # O_NONBLOCK does nothing to a file, and does not wait for the other end of a FIFO.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        try:
            descriptor = os.open(path, flags, dir_fd=None if directory is None else directory.descriptor)
        except (OSError, ValueError) as failure:
            raise error(f"{shown} {_reason(failure, advice)}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise error(f"{shown} is not a file{advice and ': '}{advice}")
        return cls(shown, descriptor, status, error)

    def __str__(self) -> str:
        """The path, for messages."""
        return str(self.path)

    def require_unchanged(self) -> None:
        """Refuse what was read if something wrote to the file meanwhile. Raises: `error`.

        Where only the time of the inode changed, all that was read is read again and compared.
        """
        then, now = self._status, os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise self._changed()
        if now.st_ctime_ns != then.st_ctime_ns:
            self._require_same_bytes()
            self._status = now

    def _require_same_bytes(self) -> None:
        """Read again what was read, and compare the hashes.

        A hard link that is made or removed changes the time of the inode, and so does another mode or owner. But so
        does a write of a copying tool, which then sets the time of the last write back.
        """
        for (offset, length), sha256 in list(self._hashes.items()):
            digest = hashlib.sha256()
            for block in self.blocks(offset, length):
                digest.update(block)
            if digest.hexdigest() != sha256:
                raise self._changed()

    def link(self, target: Path) -> None:
        """Make `target` a hard link to the file, whatever has its name by now.

        Raises: OSError if the file system cannot; `error` if something wrote to the file since it was opened.
        """
        self.require_unchanged()
        # An absolute path ignores the descriptor of a directory. Without one, Python links the symbolic link itself.
        os.link(f"/proc/self/fd/{self.descriptor}", target, src_dir_fd=self.descriptor, follow_symlinks=True)
        self._status = os.fstat(self.descriptor)

    def share(self, target: Path) -> None:
        """Make `target` a new file with the same content, which takes no room: both refer to the same blocks.

        A write to one of them does not change the other. Nothing is left if the file system cannot.

        Raises: OSError if it cannot; `error` if something wrote to the file since it was opened.
        """
        self.require_unchanged()
        with target.open("xb") as copy:
            try:
                fcntl.ioctl(copy.fileno(), _FICLONE, self.descriptor)
            except OSError:
                target.unlink()
                raise

    def copied(self, target: Path) -> Iterator[int]:
        """Copy the file to the new file `target`. Gives the bytes of each block that is copied.

        Raises: `error` if the file ends before its size when it was opened, or cannot be read.
        """
        with target.open("xb") as copy:
            done = 0
            # In the kernel, or on the server of a network disk.
            while done < self.size and (count := self._copied_inside(copy.fileno(), done)):
                done += count
                yield count
            for block in self.blocks(done, self.size - done):
                copy.write(block)
                yield len(block)

    def _copied_inside(self, target: int, offset: int) -> int:
        """Bytes that one copy_file_range(2) has copied. 0 where it does not work, and at the end of the file."""
        try:
            return os.copy_file_range(self.descriptor, target, min(_COPIED_BYTES, self.size - offset), offset)
        except OSError as failure:
            if failure.errno not in _NO_COPY_INSIDE:
                raise
            return 0

    def remember(self, offset: int, length: int, sha256: str) -> None:
        """Keep the SHA-256 of a range of bytes that was read. Several threads may do so at once.

        Raises: `error` if the same range had another SHA-256 when it was read before.
        """
        if self._hashes.setdefault((offset, length), sha256) != sha256:
            raise self._changed()

    def remembered(self, offset: int, length: int) -> str | None:
        """SHA-256 of a range of bytes as it was read. None if nobody has hashed just this range."""
        return self._hashes.get((offset, length))

    def _changed(self) -> InputError:
        return self.error(f"{self.path} was changed while it was read: try again when nothing writes to it")

    def is_at(self, status: os.stat_result) -> bool:
        """True if `status` is of this very file."""
        return os.path.samestat(status, os.fstat(self.descriptor))

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`, and remember their hash.

        Raises: `error` if the file ends before or cannot be read, or as `remember`.
        """
        block = bytearray(length)
        self.read_into(offset, memoryview(block))
        self.remember(offset, length, hashlib.sha256(block).hexdigest())
        return bytes(block)

    def blocks(self, offset: int, length: int) -> Iterator[memoryview]:
        """Read a range of bytes in blocks, each in the place of the one before. Raises: as `read_into`."""
        block, end = memoryview(bytearray(min(_BLOCK_BYTES, length))), offset + length
        while offset < end:
            part = block[: end - offset]
            self.read_into(offset, part)
            yield part
            offset += len(part)

    def read_into(self, offset: int, block: memoryview) -> None:
        """Fill `block`, of bytes, from `offset`. Several threads may read at once. The caller hashes what it keeps.

        Raises: `error` if the file ends before or cannot be read.
        """
        end = offset + len(block)
        while block:
            try:
                count = os.preadv(self.descriptor, [block], offset)
            except OSError as failure:
                raise self.error(f"{self.path} cannot be read: {failure.strerror}") from None
            if not count:
                raise self.error(f"{self.path} ends before byte {end}: it is truncated, fetch it again")
            block, offset = block[count:], offset + count

    def read_all(self, limit: int = MOST_TEXT_BYTES) -> bytes:
        """Read the whole file, and remember its hash. Raises: `error` if it is over `limit` bytes, or as `read`."""
        if self.size > limit:
            raise self.error(f"{self.path} has {self.size} bytes, expected at most {limit}")
        return self.read(0, self.size)


class Directory:
    """A directory whose files are opened relative to itself, whatever takes its name meanwhile."""

    def __init__(self, path: Path, *, error: type[InputError], advice: str = "") -> None:
        """Raises: `error`, in one line that ends with `advice` as in `OpenedFile.open`, if there is no directory."""
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as failure:
            raise error(f"{path} {_reason(failure, advice)}") from None
        self._error = error
        self._opened: dict[str, OpenedFile] = {}
        weakref.finalize(self, os.close, self.descriptor)

    def __str__(self) -> str:
        """The path, for messages."""
        return str(self.path)

    def open(self, name: str, advice: str = "", error: type[InputError] | None = None) -> OpenedFile:
        """Open the file of this relative path, the first time that it is asked for.

        Raises: `error`, by default that of the directory, as `OpenedFile.open`.
        """
        if name not in self._opened:
            self._opened[name] = OpenedFile.open(Path(name), error=error or self._error, directory=self, advice=advice)
        return self._opened[name]

    def has(self, name: str) -> bool:
        """True if something has this relative path."""
        return self._status(name) is not None

    def names(self, folder: str) -> list[str]:
        """The names of what lies in a folder here, sorted. Empty if there is no such folder."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.descriptor)
        except OSError:
            return []
        try:
            with os.scandir(descriptor) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(descriptor)

    def require_unchanged(self) -> None:
        """Refuse what was read if something wrote to a file that was opened here, or another has its name by now.

        Raises: the error of the file.
        """
        for name, file in self._opened.items():
            file.require_unchanged()
            now = self._status(name)
            # What has no name by now was deleted with the directory, and was open by then.
            if now is not None and not file.is_at(now):
                raise file.error(f"{file} was replaced while it was read: try again when nothing writes to it")

    def _status(self, name: str) -> os.stat_result | None:
        """What has this relative path now, links followed. None if nothing has it."""
        try:
            return os.stat(name, dir_fd=self.descriptor)
        except (OSError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class TextFile:
    """A small file that was read whole."""

    path: Path
    """For messages."""
    content: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, in lower-case hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def read(cls, file: OpenedFile) -> TextFile:
        """Read a file. Raises: as `OpenedFile.read_all`."""
        return cls(file.path, file.read_all())


def absolute(path: Path) -> Path:
    """The path from the root on, links kept. Raises: RequestError if it starts from a directory that was removed."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise RequestError(
            f"{path}: the current directory was removed: change to another one, or give a path that begins with /"
        ) from None


def exists(path: Path) -> bool:
    """True if something has this path. False also for what can be no path, a whole prompt for example."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def is_directory(path: Path) -> bool:
    """True if a directory has this path. False also for what can be no path."""
    return exists(path) and path.is_dir()


def read_json(file: OpenedFile, *, error: type[InputError], limit: int = MOST_TEXT_BYTES) -> Any:
    """Read a file as one JSON value. Raises: `error` naming the file, as `parse_json`."""
    return parse_json(file.read_all(limit), str(file.path), error=error)


def parse_json(text: bytes, where: str, *, error: type[InputError]) -> Any:
    """Parse UTF-8 text as one JSON value; NaN and Infinity, which Python alone takes, are refused.

    Raises: `error` naming `where`.
    """
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as failure:
        raise error(f"{where} cannot be read as JSON: {failure}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reason(failure: OSError | ValueError, advice: str) -> str:
    """Why a path cannot be opened, for the end of a sentence that begins with it."""
    if isinstance(failure, FileNotFoundError):
        what = "does not exist"
    elif isinstance(failure, NotADirectoryError):
        what = "is not a directory"
    else:
        # A name with a null character is a ValueError.
        what = f"cannot be opened: {failure.strerror if isinstance(failure, OSError) else failure}"
    is_of_process = isinstance(failure, OSError) and failure.errno in _OF_PROCESS
    return what if is_of_process or not advice else f"{what}: {advice}"
