"""A folder of states that share what their sessions have in common.

* `index.sqlite` tells which states there are (state_index.py).
* `objects/ab/abcdef...` are files that never change, named by the hash of their content. One kind holds keys and values
  of a segment, `SEGMENT_TOKENS` tokens, and is shared by all states that begin alike. The other is of one state: its
  checkpoint, with the tokens behind its last whole segment.
* `partial/` is for files that are being written.
* `lock` is held with flock: shared to save and to restore, exclusive to delete objects.

An object is on the disk before a row of the index names it, and loses its row before it is deleted. So a kill at any
moment leaves at worst files that nothing names. They go when a store is opened, and now and then when states leave.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError, StateError
from ..specs import format_bytes
from .options import bytes_limit, file_path
from .prompt_ids import TokenIds, known_ids
from .state_index import IndexedState, StateIndex, StoredSegments, StoredState, prefix_hashes
from .state_names import NamedStates

if TYPE_CHECKING:
    from . import _native
    from .model import Model
    from .session import Session

logger = logging.getLogger(__name__)

SEGMENT_TOKENS = 2048
"""Tokens of a segment in a new store."""

_LOOK_SECONDS = 600.0
"""Time until a save that removes states looks at all files again, for those that nothing names."""

_OBJECTS, _PARTIAL, _LOCK = "objects", "partial", "lock"

_BAD_FILE = ("StateUnreadable", "StateForeign", "StateDamaged", "StateVersion")
"""Codes of errors that a file of the store is to blame for."""

_OF_PROCESS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
"""What says nothing about a file, but about who opens it."""


class StateStore:
    """A folder of states of one model and precision. Any number of threads and processes may use it at once.

    Save sessions, and begin others where the longest common beginning ends:

        store = sala_export.StateStore("states/", max_bytes="200G")
        store.save(session)
        session = llm.restore_longest(store, token_ids)
    """

    def __init__(self, path: str | Path, *, max_bytes: int | str | None = None) -> None:
        """Open the store in a folder. The folder is made if there is none, but not its parent.

        Args:
            max_bytes: most bytes of its files, as a number or as text such as `200G`. When a save exceeds that, the
                states that were used longest ago go. None: no limit.
        Raises: StateError for a folder that holds anything else, that cannot be written, or whose store is of another
            version, or another `max_bytes`; RequestError for text that is no size.
        """
        self.path = file_path("the state store", path, StateError)
        """The path as it was given."""
        self.max_bytes = bytes_limit("max_bytes", max_bytes, StateError)
        self._looked = -math.inf
        with self._naming():
            self.path.mkdir(exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise StateError(f"{self.path} is not writable: choose another folder for the store")
            self._index = StateIndex(self.path, SEGMENT_TOKENS)
            for name in (_OBJECTS, _PARTIAL):
                (self.path / name).mkdir(exist_ok=True)
            _sync(self.path)
        self._clean()

    @property
    def bytes(self) -> int:
        """Bytes of all files that states need. What they share counts once."""
        return self._index.bytes()

    @property
    def states(self) -> list[StoredState]:
        """All states, the one that was used last first."""
        return self._index.states()

    @property
    def named(self) -> NamedStates:
        """The states that have names."""
        return NamedStates(self)

    def save(self, session: Session) -> None:
        """Save where a session stands, and its checkpoints from the model's `dense_len` tokens on.

        Only what the session has not saved here before is read and written. A state of the same tokens that is here
        already stays as it is, and counts as used. A token that was generated last has not run yet and is left out.

        When this returns, the states outlive a kill and a loss of power.

        Raises: StateError if they cannot be written, if the state where the session stands has more than `max_bytes`,
            or more than states with names leave of it, or if the store is of another model or precision. It is then as
            it was, or has less that has no name. SessionError for an empty session, and for one that was restored from
            a file behind a generated token, before that token has run.
        """
        native, model = session._native, session._model
        end = native.past_length
        if end == 0:
            raise SessionError("the session is empty, so there is nothing to save: prefill it first")
        self._require_room(model.state_bytes(end), end)
        prefixes = prefix_hashes(native.tokens, _positions(native, model))
        try:
            with self._locked(fcntl.LOCK_SH):
                last = self._save(session, prefixes)
        except BaseException:
            self._clean()
            raise
        if self.max_bytes is not None and self.bytes > self.max_bytes:
            with self._locked(fcntl.LOCK_EX):
                self._remove_partial()
                for digest in self._index.evict(self.max_bytes, last):
                    self._file(digest).unlink(missing_ok=True)
                if monotonic() - self._looked > _LOOK_SECONDS:
                    self._remove_unnamed()
                is_too_much = self.bytes > self.max_bytes
                if is_too_much:
                    self._index.drop([last])
                    self._remove_unnamed()
            if is_too_much:
                raise StateError(
                    f"{self.path} has a limit of {self.max_bytes} bytes ({format_bytes(self.max_bytes)}), and what has "
                    f"a name there leaves no room for the state of {last.position} tokens: delete some of that, or "
                    "choose a larger limit"
                )

    def _save(self, session: Session, prefixes: dict[int, str]) -> IndexedState:
        """Write what is missing of the states of these prefixes. Returns the longest of them."""
        native, model = session._native, session._model
        self._index.require_owner(model.fingerprint, model.precision)
        found = self._index.find(prefixes)
        known = session._segments.get(self._index.identity, StoredSegments(self._index.segment_tokens)).hashes
        needed = {*known, *(each for state in found for each in state.objects)}
        sizes = {each: size for each, size in self._index.sizes_of(needed).items() if self._has(each, size)}
        present = [state for state in found if all(each in sizes for each in state.objects)]
        missing = sorted(prefixes.keys() - {state.position for state in present})
        segments = self._save_segments(session, max(missing, default=0), sizes)
        states = []
        for position in missing:
            objects = segments.up_to(position).hashes
            first = len(objects) * segments.length
            checkpoint = self._put(partial(native.save_checkpoint, first=first, position=position), sizes)
            states.append(IndexedState(position, prefixes[position], (*objects, checkpoint)))
        last = max([*states, *present], key=lambda state: state.position)
        self._require_room(sum(sizes[each] for each in set(last.objects)), last.position)
        self._index.add(states, sizes, present, model=model.fingerprint, precision=model.precision)
        session._segments[self._index.identity] = segments
        return last

    def _save_segments(self, session: Session, end: int, sizes: dict[str, int]) -> StoredSegments:
        """Write the whole segments before `end` that are missing. Returns all that the store has of the session."""
        length = self._index.segment_tokens
        known = session._segments.get(self._index.identity, StoredSegments(length)).hashes
        hashes = list(known)
        for first in range(0, end // length * length, length):
            place = first // length
            if place >= len(known) or known[place] not in sizes:
                write = partial(session._native.save_rows, first=first, last=first + length)
                hashes[place : place + 1] = [self._put(write, sizes)]
        return StoredSegments(length, tuple(hashes))

    def longest(self, model: Model, token_ids: TokenIds) -> int:
        """Position of the state that `Model.restore_longest` would begin with, found without reading it. 0 if none.

        It is the number of these tokens, from the first on, that a state of the store has. A file that is damaged
        counts here, and not for `restore_longest`.
        Raises: StateError if the store is of another model or precision, or cannot be used; SessionError for what are
            no token ids.
        """
        ids = known_ids(token_ids)[: model.default_max_context]
        with self._locked(fcntl.LOCK_SH):
            self._index.require_owner(model.fingerprint, model.precision)
            found = self._index.find(prefix_hashes(ids, self._index.positions(len(ids))))
            sizes = self._index.sizes_of({each for state in found for each in state.objects})
            whole = (state for state in found if all(self._has(each, sizes[each]) for each in state.objects))
            return max((state.position for state in whole), default=0)

    def restore(
        self,
        model: _native.Model,
        token_ids: NDArray[np.int32],
        options: _native.SessionOptions,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[_native.Session, dict[str, StoredSegments]] | None:
        """As `Model.restore_longest`. Returns a session, and what it has of which store. None if nothing matches.

        Args: token_ids: no more than the session can hold.
        """
        try:
            return self._restored(model, token_ids, options, on_progress)
        except _CallerError as caught:
            raise caught.error from None

    def _restored(
        self,
        model: _native.Model,
        token_ids: NDArray[np.int32],
        options: _native.SessionOptions,
        on_progress: Callable[[int, int], None] | None,
    ) -> tuple[_native.Session, dict[str, StoredSegments]] | None:
        while True:
            with self._locked(fcntl.LOCK_SH):
                self._index.require_owner(model.fingerprint, model.precision)
                found = self._longest(token_ids)
                if found is None:
                    return None
                reading = _Reading(len(found.objects), on_progress)
                *rows, checkpoint = map(self._file, found.objects)
                seen = {each: self._identity(each) for each in found.objects}
                try:
                    native = model.restore_parts(rows, checkpoint, options, reading.begin)
                except StateError as error:
                    bad, reason = found.objects[reading.part], str(error)
                    self._require_bad(bad, error)
                else:
                    if np.array_equal(native.tokens, token_ids[: found.position]):
                        self._index.mark_used(found)
                        reading.begin(len(found.objects))
                        segments = StoredSegments(self._index.segment_tokens, found.objects[:-1])
                        return native, {self._index.identity: segments}
                    bad, reason = found.objects[-1], f"{checkpoint} is of other tokens than the index says"
            self._drop(bad, seen[bad], reason)

    def _longest(self, token_ids: NDArray[np.int32]) -> IndexedState | None:
        found = self._index.find(prefix_hashes(token_ids, self._index.positions(len(token_ids))))
        return found[0] if found else None

    def _require_bad(self, digest: str, error: StateError) -> None:
        """Let errors out for which the file is not to blame, so that no state goes for too many open files."""
        if error.code not in _BAD_FILE:
            raise error
        path = self._file(digest)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as failure:
            if failure.errno in _OF_PROCESS:
                raise error from None
        else:
            # What stood in the way of a file that can be opened now is not known to be its fault.
            if error.code == "StateUnreadable" and path.is_file():
                raise error

    def _drop(self, digest: str, seen: tuple[int, ...] | None, reason: str) -> None:
        """Drop an object, and the states that need it, unless another process has put another file in its place.

        Args: seen: `_identity` of the bad file.
        """
        with self._locked(fcntl.LOCK_EX):
            if self._identity(digest) != seen:
                return
            lost = self._index.drop_object(digest)
            self._remove_unnamed()
        logger.warning("%s. The store drops the states that need this file: %d", reason, lost)

    def _require_room(self, size: int, tokens: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            raise StateError(
                f"{self.path} has a limit of {self.max_bytes} bytes ({format_bytes(self.max_bytes)}), and the state of "
                f"{tokens} tokens takes {size} ({format_bytes(size)}): choose a larger limit"
            )

    def _file(self, digest: str) -> Path:
        return self.path / _OBJECTS / digest[:2] / digest

    def _identity(self, digest: str) -> tuple[int, ...] | None:
        """What tells a file from one that is put in its place. None if there is none."""
        try:
            status = self._file(digest).stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _has(self, digest: str, size: int) -> bool:
        try:
            return self._file(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def _put(self, write: Callable[[Path], str], sizes: dict[str, int]) -> str:
        """Make an object of what `write` writes to a path, on the disk, whose hash it returns.

        Its bytes come into `sizes`.
        """
        written = self.path / _PARTIAL / uuid.uuid4().hex
        try:
            digest = write(written)
            if digest not in sizes:
                size = written.stat().st_size
                target = self._file(digest)
                if not target.parent.is_dir():
                    target.parent.mkdir(exist_ok=True)
                    _sync(target.parent.parent)
                written.replace(target)
                _sync(target.parent)
                sizes[digest] = size
        finally:
            written.unlink(missing_ok=True)
        return digest

    def _clean(self) -> None:
        """Remove what nothing names, or leave it for later while somebody saves or restores."""
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._remove_unnamed()

    def _remove_unnamed(self) -> None:
        """Under the exclusive lock nobody writes, so all that the index does not name is a leftover."""
        self._remove_partial()
        named = self._index.objects()
        for path in (self.path / _OBJECTS).glob("??/*"):
            if path.name not in named:
                path.unlink()
        self._looked = monotonic()

    def _remove_partial(self) -> None:
        """Remove what nobody writes any more, as `_remove_unnamed`."""
        for path in (self.path / _PARTIAL).iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        """Hold the lock. Raises: BlockingIOError if it is taken and `operation` does not wait; StateError."""
        with self._naming():
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            owner = os.getpid()
            try:
                fcntl.flock(descriptor, operation)
                yield
            finally:
                # A child that another thread forks meanwhile has the descriptor too, and would keep the lock.
                if os.getpid() == owner:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Make errors of the system those of the store, but for a lock that is taken."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            where = self.path if error.filename is None else error.filename
            raise StateError(f"{where} cannot be used: {error.strerror}: choose another folder for the store") from None


class _Reading:
    """Which part of a state is being read."""

    def __init__(self, parts: int, on_progress: Callable[[int, int], None] | None) -> None:
        self.part = -1
        self._parts = parts
        self._on_progress = on_progress

    def begin(self, part: int) -> None:
        """A part is about to be read. The last is opened first, to see what it takes, and read behind the others."""
        done = 0 if self.part < 0 else part
        self.part = part
        if self._on_progress is None:
            return
        try:
            self._on_progress(done, self._parts)
        except OSError as error:
            raise _CallerError(error) from error


class _CallerError(Exception):
    """An error of the system that a callback raised, which says nothing about the store."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _positions(native: _native.Session, model: _native.Model) -> list[int]:
    """Where a session is saved. A shorter checkpoint of a long prompt would fit no other prompt.

    Up to `dense_len` tokens, the length of the whole prompt decides how each of its tokens attends.
    """
    end = native.past_length
    return [*(at for at in native.checkpoints if model.dense_len <= at < end), end]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
