"""Prompts in any form, as text, bytes, ids or an iterator, and the token ids in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError, UnsupportedError

TokenIds = Sequence[int] | NDArray[np.integer]
"""Ids of consecutive tokens."""

Piece = str | bytes | int | TokenIds
"""One piece of a prompt that comes as an iterator: text, UTF-8 bytes cut anywhere, one id or several."""

Prompt = str | TokenIds | Iterable[Piece]


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
    Raises: SessionError as `token_array`; UnsupportedError for text without a tokenizer.
    """
    if isinstance(prompt, str):
        return token_array(require_tokenizer(tokenizer).encode(prompt, add_special_tokens=begins))
    if isinstance(prompt, np.ndarray):
        return token_array(prompt)
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and _are_ids(prompt):
        return token_array(prompt)
    return None


def streamed_prompt(prompt: Prompt, tokenizer: TokenizerLike | None, *, begins: bool) -> Iterator[NDArray[np.int32]]:
    """Yield token ids of a stream as they become certain, int32 [tokens]. Arguments and errors as `whole_prompt`."""
    if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
        raise SessionError(f"a prompt is of type {type(prompt).__name__}, expected text, token ids or an iterator")
    encoder: EncoderLike | None = None
    pieces: Iterable[Piece] = (prompt,) if isinstance(prompt, bytes) else prompt
    for piece in pieces:
        if isinstance(piece, str | bytes):
            encoder = encoder or require_tokenizer(tokenizer).stream_encoder(add_special_tokens=begins)
            yield token_array(encoder.push(utf8(piece) if isinstance(piece, str) else piece))
            continue
        if encoder is not None:
            yield token_array(encoder.finish())
            encoder = None
        begins = False
        yield token_array([piece] if isinstance(piece, int | np.integer) else piece)
    if encoder is not None:
        yield token_array(encoder.finish())


def token_array(ids: TokenIds) -> NDArray[np.int32]:
    """Convert token ids to an int32 array [n].

    Raises: SessionError if the ids are no integers of one dimension, or exceed int32.
    """
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise SessionError(f"a prompt of token ids is no array, expected integers [tokens]: {error}") from None
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise SessionError(f"a prompt of token ids is {array.dtype} {list(array.shape)}, expected integers [tokens]")
    limits = np.iinfo(np.int32)
    if int(array.min()) < limits.min or int(array.max()) > limits.max:
        raise SessionError(f"a token id of the prompt exceeds {limits.max}: use the tokenizer of this model")
    return np.ascontiguousarray(array, np.int32)


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


def _are_ids(prompt: Sequence[Piece]) -> TypeGuard[Sequence[int]]:
    return all(isinstance(piece, int | np.integer) for piece in prompt)
