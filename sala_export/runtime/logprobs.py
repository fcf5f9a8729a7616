"""How probable the model found the tokens of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from . import _native

Piece = TypeVar("Piece")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """The natural log-probability of a token by the model's own logits, before all sampling options.

    One that the logits rule out has `-inf`.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with their log-probabilities, as many as you asked for, equal ones by rising id."""


class LastLogprobs:
    """The log-probabilities of the tokens behind the last piece of an answer."""

    def __init__(self) -> None:
        self.of_tokens: list[TokenLogprobs] = []

    def begin(self) -> None:
        """Begin with the tokens of another piece."""
        self.of_tokens = []

    def add(self, token_id: int | None, found: tuple[float, list[tuple[int, float]]] | None) -> None:
        """Add what was found of a token. Nothing was, at the end and where nobody asked for it."""
        if token_id is not None and found is not None:
            logprob, top = found
            self.of_tokens.append(TokenLogprobs(token_id=token_id, logprob=logprob, top=tuple(top)))


class DrawnIds(Iterator[int]):
    """The ids of a generation, which notes their log-probabilities."""

    def __init__(self, generation: _native.Generation, logprobs: LastLogprobs, *, are_pieces: bool) -> None:
        """Args: are_pieces: whether each id is a piece of the answer."""
        self._generation = generation
        self._logprobs = logprobs
        self._are_pieces = are_pieces

    def __next__(self) -> int:
        token_id = self._generation.next()
        if token_id is None:
            raise StopIteration
        if self._are_pieces:
            self._logprobs.begin()
        self._logprobs.add(token_id, self._generation.logprobs)
        return token_id


def each_afresh(pieces: Iterator[Piece], logprobs: LastLogprobs) -> Iterator[Piece]:
    """Yield pieces, and forget the tokens behind each when the next one is asked for."""
    for piece in pieces:
        yield piece
        logprobs.begin()
