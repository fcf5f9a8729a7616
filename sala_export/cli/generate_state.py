"""The state that `generate` saves: its place is taken before the work, and whatever ends the work, it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..errors import SalaError, StateError
from .generate_prompt import Context
from .signals import held_back, was_interrupted

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.session import Session, StateTarget


def open_target(path: Path, stack: ExitStack) -> StateTarget:
    """Take the path of `--save-state`, until the stack ends. Raises: StateError naming the option."""
    from ..runtime.session import StateTarget

    try:
        return stack.enter_context(StateTarget(path))
    except StateError as error:
        raise StateError(f"--save-state {error}") from None


def require_room(target: StateTarget, model: Model, session: Context, tokens: int) -> None:
    """Refuse a state that would not fit on its disk.

    Args: tokens: as many as are known to come into the context, which may be fewer than will.
    Raises: StateError.
    """
    target.require_room(model.state_bytes(min(session.position + tokens, session.max_context)))


@contextmanager
def saved_at_the_end(console: Console, session: Session, target: StateTarget | None) -> Iterator[None]:
    """Save the session after the block. If the block ends early, say where the work stands.

    Signals are held back inside the block: it asks for them between steps, where the session can be saved.
    """
    before = session.position
    with held_back():
        try:
            yield
        except BaseException:
            if target is not None and session.position > before:
                _save_early(console, session, target)
            raise
        if target is not None:
            session.save(target)
            if was_interrupted():  # during the last step or the save, and the command ends as interrupted
                console.print(_saved(session, target), soft_wrap=True)


def _save_early(console: Console, session: Session, target: StateTarget) -> None:
    try:
        session.save(target)
    except SalaError as error:
        line = f"what had run could not be saved to {target.path}: {error}"
    else:
        line = _saved(session, target)
    console.print(line, soft_wrap=True)


def _saved(session: Session, target: StateTarget) -> str:
    path = target.path
    return f"saved the {session.position:,} tokens that had run to {path}: continue with --load-state {path}"
