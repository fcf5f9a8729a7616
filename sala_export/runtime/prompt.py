"""Prompts in any form, as text, bytes, ids or an iterator, and the token ids in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError, UnsupportedError
from .prompt_ids import TokenIds, held_ids, piece_ids

Text = str | bytes | bytearray | memoryview
"""Text, or its bytes in UTF-8."""

Piece = Text | int | TokenIds
"""One piece of a prompt that comes as an iterator: text, UTF-8 bytes cut anywhere, one id or several."""

Prompt = Text | TokenIds | Iterable[Piece]


class EncoderLike(Protocol):
    """Turns text that arrives in pieces into the ids of the whole text."""

    def push(self, data: bytes) -> Sequence[int]:
        """Take a piece of text. Returns the ids that no later piece can change."""

    def finish(self) -> Sequence[int]:
        """End the text. Returns the remaining ids."""


class DecoderLike(Protocol):
    """Turns ids that arrive one by one into text whose pieces are valid on their own."""

    def push(self, token_id: int) -> str:
        """Take an id. Returns the text that no later id can change."""

    def finish(self) -> str:
        """End the ids. Returns the remaining text."""


class TokenizerLike(Protocol):
    """A tokenizer as a session needs it to read and write text. `text.Tokenizer` is one."""

    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer, besides those of the model's config."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    def stream_encoder(self, *, add_special_tokens: bool) -> EncoderLike: ...

    def stream_decoder(self) -> DecoderLike: ...


def whole_prompt(prompt: Prompt, tokenizer: TokenizerLike | None, *, begins: bool) -> NDArray[np.int32] | None:
    """Token ids of a prompt that is given whole, int32 [tokens]. None for a stream.

    Args: begins: True if the prompt begins a context. Its text then gets the tokens that begin a text.
    Raises: SessionError as `held_ids`, and for a list of texts; UnsupportedError for text without a tokenizer.
    """
    if isinstance(prompt, str):
        return _ids(require_tokenizer(tokenizer).encode(prompt, add_special_tokens=begins))
    if _text_bytes(prompt) is not None:
        return None
    if isinstance(prompt, Sequence) and len(prompt) > 1 and all(isinstance(each, str | bytes) for each in prompt):
        raise SessionError(
            f"a prompt is a list of {len(prompt)} texts, and a session takes one prompt: make a session for each, "
            "or give pieces of one text as an iterator"
        )
    return held_ids(prompt)


def streamed_prompt(prompt: Prompt, tokenizer: TokenizerLike | None, *, begins: bool) -> Iterator[NDArray[np.int32]]:
    """Yield token ids of a stream as they become certain, int32 [tokens]. Arguments and errors as `whole_prompt`."""
    if not isinstance(prompt, Iterable):
        raise SessionError(f"a prompt is of type {type(prompt).__name__}, expected text, token ids or an iterator")
    encoder: EncoderLike | None = None
    pieces: Iterable[Piece] = (prompt,) if isinstance(prompt, bytes | bytearray | memoryview) else prompt
    for piece in pieces:
        if (text := _text_bytes(piece)) is not None:
            encoder = encoder or require_tokenizer(tokenizer).stream_encoder(add_special_tokens=begins)
            yield _ids(encoder.push(text))
            continue
        if encoder is not None:
            yield _ids(encoder.finish())
            encoder = None
        begins = False
        yield piece_ids(piece)
    if encoder is not None:
        yield _ids(encoder.finish())


def _ids(ids: Sequence[int]) -> NDArray[np.int32]:
    """Ids of a tokenizer, int32 [tokens]."""
    return np.asarray(ids, np.int32)


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises: SessionError if it has half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise SessionError(
            f"the prompt has half a surrogate pair at character {error.start}: it is no Unicode text"
        ) from None


def require_tokenizer(tokenizer: TokenizerLike | None) -> TokenizerLike:
    """Return the tokenizer. Raises: UnsupportedError if the model has none."""
    if tokenizer is None:
        raise UnsupportedError("the bundle has no tokenizer, so text cannot be read or written: use token ids")
    return tokenizer


def _text_bytes(value: object) -> bytes | None:
    """The bytes of text, given as such or as text. None for what is no text."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, bytes | bytearray) or (isinstance(value, memoryview) and value.itemsize == 1):
        return bytes(value)
    return None
