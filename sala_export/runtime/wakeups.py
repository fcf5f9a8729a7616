"""Coroutines that wait for the answers of a scheduler, without a thread for any of them.

The scheduler's thread writes to a descriptor after each change of an answer. One event loop watches the descriptor, and
goes on with those coroutines whose answers have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import SessionError

if TYPE_CHECKING:
    from . import _native


class Wakeups:
    """Lets the coroutines of one event loop wait for answers of one scheduler."""

    def __init__(self, scheduler: _native.Scheduler) -> None:
        self._scheduler = scheduler  # whose descriptor must stay open while a loop watches it
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closing = False
        self._waiting: dict[asyncio.Future[None], tuple[_native.Answer, int]] = {}

    async def until(self, answer: _native.Answer, is_so: Callable[[], bool]) -> None:
        """Wait for a condition that only a change of the answer can fulfil.

        Raises: SessionError in another event loop than the first that waited, unless that is closed, and in a child
            of the process.
        """
        while True:
            changes = answer.changes  # before the condition, so that no change behind it is missed
            if is_so():
                return
            loop = self._watching_loop()
            future = loop.create_future()
            self._waiting[future] = (answer, changes)
            try:
                await future
            finally:
                self._waiting.pop(future, None)
                self._let_go_at_the_end(loop)

    def close(self) -> None:
        """Let the loop go as soon as nobody waits. Any thread may call it, once the answers have ended or will."""
        self._is_closing = True
        loop = self._loop
        if loop is not None and self._process == os.getpid():
            with contextlib.suppress(RuntimeError):  # a closed loop watches nothing
                loop.call_soon_threadsafe(self._let_go_at_the_end, loop)

    def _watching_loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, which watches from now on."""
        loop = asyncio.get_running_loop()
        if os.getpid() != self._process:
            raise SessionError("the answer belongs to the process that asked for it: wait for it there")
        with self._lock:
            if self._loop is loop:
                return loop
            if self._loop is not None and not self._loop.is_closed():
                raise SessionError(
                    "another event loop waits for answers of this scheduler: use that loop, or make a scheduler for "
                    "each loop"
                )
            loop.add_reader(self._scheduler.descriptor, self._wake)
            self._loop = loop
            self._waiting = {}
        return loop

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # nothing to read, if the loop was told twice
            os.eventfd_read(self._scheduler.descriptor)
        for future, (answer, changes) in self._waiting.items():
            if answer.changes != changes and not future.done():
                future.set_result(None)

    def _let_go_at_the_end(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread of the loop: watch no longer, if the scheduler is closed and nobody waits."""
        with self._lock:
            if not self._is_closing or self._waiting or self._loop is not loop or loop.is_closed():
                return
            loop.remove_reader(self._scheduler.descriptor)
            self._loop = None
