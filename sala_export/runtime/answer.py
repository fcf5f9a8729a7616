"""The text of an answer, made of its token ids, up to the first stop string."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .options import stop_strings
from .prompt import DecoderLike, TokenizerLike

if TYPE_CHECKING:
    from . import _native


class StoppingDecoder:
    """A decoder whose text ends before the first place where a stop string begins.

    What may become a stop string is held back until that is decided.
    """

    def __init__(self, decoder: DecoderLike, strings: _native.StopStrings) -> None:
        self._decoder = decoder
        self._strings = strings
        self._held = ""

    @property
    def found(self) -> bool:
        """True once the text has ended before a stop string."""
        return self._strings.found

    @property
    def held(self) -> str:
        """The text of the ids so far that was not returned. It begins with a stop string once one is found."""
        return self._held

    def push(self, token_id: int) -> str:
        """Take an id. Returns the text that no later id can change. Empty once the text has ended."""
        return self._take(self._decoder.push(token_id))

    def finish(self) -> str:
        """End the ids. Returns the remaining text."""
        text = self._take(self._decoder.finish())
        rest = self._strings.finish()
        self._held = self._held[len(rest) :]
        return text + rest

    def _take(self, piece: str) -> str:
        text = self._strings.push(piece)
        self._held = (self._held + piece)[len(text) :]
        return text


def answer_decoder(tokenizer: TokenizerLike, strings: object) -> DecoderLike:
    """What turns the ids of a generation with these `stop_strings` into the text to show.

    Raises: SessionError for wrong stop strings.
    """
    decoder = tokenizer.stream_decoder()
    matcher = stop_strings(strings)
    return decoder if matcher is None else StoppingDecoder(decoder, matcher)


def decoded(ids: Iterator[int], decoder: DecoderLike) -> Iterator[str]:
    """Yield the text of ids, each piece as soon as it is certain. The id that completes a stop string is the last."""
    for token_id in ids:
        if piece := decoder.push(token_id):
            yield piece
        if isinstance(decoder, StoppingDecoder) and decoder.found:
            return
    if piece := decoder.finish():
        yield piece


def up_to_stop(ids: Iterator[int], decoder: StoppingDecoder) -> Iterator[int]:
    """Yield ids up to the one that completes a stop string."""
    for token_id in ids:
        decoder.push(token_id)
        yield token_id
        if decoder.found:
            return
    decoder.finish()
