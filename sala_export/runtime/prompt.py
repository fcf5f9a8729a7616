"""What a prompt may be, and the token ids in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError, UnsupportedError

TokenIds = Sequence[int] | NDArray[np.integer]
"""Ids of consecutive tokens."""

Piece = str | bytes | int | TokenIds
"""What an iterator of a prompt may give: text, UTF-8 bytes cut anywhere, one id or several."""

Prompt = str | TokenIds | Iterable[Piece]


class EncoderLike(Protocol):
    """Turns text that arrives in pieces into the ids of the whole text."""

    def push(self, data: bytes) -> Sequence[int]:
        """Ids that no later byte can change any more."""

    def finish(self) -> Sequence[int]:
        """The remaining ids."""


class DecoderLike(Protocol):
    """Turns ids that arrive one by one into text whose pieces are valid on their own."""

    def push(self, token_id: int) -> str:
        """Text that no later id can change any more."""

    def finish(self) -> str:
        """The remaining text."""


class TokenizerLike(Protocol):
    """What a session needs to speak text; `text.Tokenizer` is one."""

    stop_token_ids: tuple[int, ...]
    """Tokens that end a text, besides those of the model's config."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    def stream_encoder(self, *, add_special_tokens: bool) -> EncoderLike: ...

    def stream_decoder(self) -> DecoderLike: ...


def whole_prompt(prompt: Prompt, tokenizer: TokenizerLike | None, *, begins: bool) -> NDArray[np.int32] | None:
    """Ids of a prompt that is given whole, int32 [tokens]; None for a stream.

    Args: begins: the prompt begins a context, so its text begins with the tokens that the tokenizer puts there.
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
    """Ids of a stream as they become certain, int32 [tokens] each. `begins` and raises as `whole_prompt`."""
    encoder: EncoderLike | None = None
    pieces: Iterable[Piece] = (prompt,) if isinstance(prompt, bytes) else prompt
    for piece in pieces:
        if isinstance(piece, str | bytes):
            encoder = encoder or require_tokenizer(tokenizer).stream_encoder(add_special_tokens=begins)
            yield token_array(encoder.push(piece.encode() if isinstance(piece, str) else piece))
            continue
        if encoder is not None:
            yield token_array(encoder.finish())
            encoder = None
        begins = False
        yield token_array([int(piece)] if isinstance(piece, int | np.integer) else piece)
    if encoder is not None:
        yield token_array(encoder.finish())


def token_array(ids: TokenIds) -> NDArray[np.int32]:
    """Ids as int32 [n].

    Raises: SessionError if they are no integers of one dimension, or exceed int32.
    """
    array = np.asarray(ids)
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise SessionError(f"a prompt of token ids is {array.dtype} {list(array.shape)}, expected integers [tokens]")
    limits = np.iinfo(np.int32)
    if int(array.min()) < limits.min or int(array.max()) > limits.max:
        raise SessionError(f"a token id of the prompt exceeds {limits.max}: use the tokenizer of this model")
    return np.ascontiguousarray(array, np.int32)


def require_tokenizer(tokenizer: TokenizerLike | None) -> TokenizerLike:
    """The tokenizer. Raises: UnsupportedError if there is none."""
    if tokenizer is None:
        raise UnsupportedError("the bundle has no tokenizer, so text cannot be read or written: use token ids")
    return tokenizer


def _are_ids(prompt: Sequence[Piece]) -> TypeGuard[Sequence[int]]:
    return all(isinstance(piece, int | np.integer) for piece in prompt)
