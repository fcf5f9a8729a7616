"""What comes of a request while it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime.logprobs import TokenLogprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How much of the prompt has been read."""

    total: int
    """Tokens of the prompt."""
    cached: int
    """Tokens of the prompt that were read for an earlier request."""
    processed: int
    """Tokens that the context holds, the cached ones included."""
    seconds: float
    """Since the request began to wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token of an answer, or of the prompt in front of it."""

    id: int
    text: str
    """What it adds to the text. Empty while its last character is not whole."""
    logprobs: TokenLogprobs | None
    """None if they were not asked for, and for the first token of a context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What is new of one choice."""

    choice: int
    text: str
    """Without what may become a stop string."""
    tokens: list[Token]


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The end of one choice."""

    choice: int
    reason: str
    """`stop` or `length`, as OpenAI names them."""
    stop_string: str | None = None
    """The one that ended it."""


Event = Progress | Piece | End
