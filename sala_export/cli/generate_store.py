"""`generate --state-store`: what a store has of a prompt is restored, the rest is read and saved there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..errors import RequestError, SalaError, StateError
from .generate_display import PrefillDisplay
from .generate_prompt import PromptSource
from .signals import raise_received

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.session import PrefillProgress, Session
    from ..runtime.state_store import StateStore


def open_store(path: Path | None, max_bytes: int | None, *, load_state: Path | None) -> StateStore | None:
    """Open the store of `--state-store`. None without that option. Raises: StateError and RequestError naming it."""
    if path is None:
        if max_bytes is not None:
            raise RequestError("--state-store-bytes is the limit of a store: give --state-store DIR, too")
        return None
    if load_state is not None:
        raise RequestError("--state-store looks up a prompt from its beginning: leave --load-state out")
    from ..runtime.state_store import StateStore

    try:
        return StateStore(path, max_bytes=max_bytes)
    except StateError as error:
        raise StateError(f"--state-store {error}") from None


@dataclass(frozen=True, slots=True)
class NewContext:
    """A context that is still empty, for a prompt that becomes ids before there is a session."""

    max_context: int
    position: int = 0

    @property
    def tokens(self) -> NDArray[np.int32]:
        return np.zeros(0, np.int32)


class StoredPrompt:
    """A prompt, and the store that may have its beginning."""

    def __init__(
        self, console: Console, store: StateStore, model: Model, source: PromptSource, ids: list[list[int]]
    ) -> None:
        """Args: ids: all tokens of the prompt."""
        self._console = console
        self._store = store
        self._model = model
        self._source = source
        self._ids = np.asarray([token for piece in ids for token in piece], np.int32)

    def begin(self, max_context: int | None) -> Session:
        """Make the session, with what the store has. Raises: as `Model.restore_longest`."""
        return self._model.restore_longest(self._store, self._ids, max_context=max_context)

    def read(self, session: Session) -> None:
        """Read the rest of the prompt, save it to the store, and say how much that was.

        What had run when the work ends early is saved too, as far as it is the beginning of any longer prompt.
        """
        begun, total = session.position, len(self._ids)
        line = f"state store: {begun:,} of {total:,} tokens of the prompt are there, {total - begun:,} are read"
        if self._console.is_terminal:
            self._console.print(line, soft_wrap=True)
        try:
            self._prefill(session)
        except BaseException:
            if session.position > max(begun, self._model.dense_len):
                self._save(session)
            raise
        if not self._console.is_terminal:  # a log that nobody reads keeps no prompt from running
            self._console.print(line, soft_wrap=True)
        if total > begun:
            self._save(session)

    def _prefill(self, session: Session) -> None:
        total, end = len(self._ids), self._source.file_tokens
        # The end of the file is the same beginning for every prompt behind it, once both are long enough to be sparse.
        cuts = [end] if max(session.position, self._model.dense_len - 1) < end < total else []
        for last in (*cuts, total) if session.position < total else ():
            with PrefillDisplay(self._console, self._source.tokens_expected) as display:

                def on_progress(progress: PrefillProgress, display: PrefillDisplay = display) -> None:
                    display(progress)
                    raise_received()

                session.prefill(self._ids[session.position : last], context_length=total, on_progress=on_progress)
            session.checkpoint()

    def _save(self, session: Session) -> None:
        """The answer does not wait for a store that is full. A line says so."""
        try:
            self._store.save(session)
        except SalaError as error:
            self._console.print(f"warning: the prompt could not be saved to the state store: {error}", soft_wrap=True)
