"""The bytes of every token, as a grammar needs them, and the tokens that are markers and no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ...checkpoint.library_tokenizer import LibraryTokenizer
from ...errors import RequestError, UnsupportedError

_Spec = Mapping[str, Any]
_Step = Callable[[str | bytes], str | bytes]

_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"


class Vocabulary:
    """The tokens of a model. It is immutable."""

    def __init__(self, tokenizer: LibraryTokenizer, vocab_size: int, stop_token_ids: Sequence[int]) -> None:
        """Args: vocab_size: tokens that the model draws from, whether or not the tokenizer knows them.

        Raises: RequestError if no token ends an answer, or one lies outside the vocabulary. UnsupportedError if the
        tokenizer's decoder is of a kind whose tokens have no bytes of their own.
        """
        if not stop_token_ids:
            raise RequestError(f"{tokenizer.origin}: no token ends an answer of a given form: name one")
        wrong = [token_id for token_id in stop_token_ids if not 0 <= token_id < vocab_size]
        if wrong:
            raise RequestError(f"stop token {wrong[0]} is not in the vocabulary of {vocab_size} tokens: name another")
        spec = tokenizer.spec()
        self.stop_token_ids = tuple(stop_token_ids)
        self.markers = _markers(tokenizer, vocab_size)
        """Ids by spelling, of the added tokens that no text spells."""
        self.special_token_ids = sorted({*self.markers.values(), *stop_token_ids})
        unknown = tokenizer.token_id(spec["model"].get("unk_token") or "")
        steps = _steps(spec.get("decoder"), tokenizer.origin)
        self.tokens = [_token_bytes(tokenizer.token(token_id), steps) for token_id in range(vocab_size)]
        """Bytes by id. Empty for ids that are no token, and for the token of unknown text unless it is a marker."""
        if unknown is not None and unknown < vocab_size:
            self.tokens[unknown] = b""
        for token_id in self.special_token_ids:
            self.tokens[token_id] = (tokenizer.token(token_id) or f"<{token_id}>").encode()

    def pieces(self, text: str) -> Iterator[str | int]:
        """Split a text that a model writes into markers, as their ids, and what is between them."""
        while text:
            found = [(text.find(marker), -len(marker), marker) for marker in self.markers if marker in text]
            if not found:
                yield text
                return
            start, _, marker = min(found)
            if start:
                yield text[:start]
            yield self.markers[marker]
            text = text[start + len(marker) :]


def _markers(tokenizer: LibraryTokenizer, vocab_size: int) -> dict[str, int]:
    """Added tokens, without words that a fine-tune added. Those of a chat need not be special: Qwen's are not."""
    added = tokenizer.added_tokens.items()
    return {
        token.content: token_id
        for token_id, token in added
        if token_id < vocab_size and token.content and (token.special or token.content.startswith("<"))
    }


def _token_bytes(spelling: str | None, steps: Sequence[_Step]) -> bytes:
    value: str | bytes = spelling or ""
    for step in steps:
        value = step(value)
    return value if isinstance(value, bytes) else value.encode()


def _steps(decoder: _Spec | None, origin: str) -> list[_Step]:
    """What a decoder does to one token in the middle of a text."""
    kind = decoder["type"] if decoder else None
    if decoder and kind == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part, origin)]
    if kind in ("Fuse", "Strip"):  # They join tokens, and cut the ends of a text.
        return []
    if kind == "ByteLevel":
        return [partial(_from_byte_level, bytes_by_character=_byte_level_characters())]
    if kind == "ByteFallback":
        return [_from_byte_fallback]
    if decoder and kind == "Metaspace":
        return [partial(_replaced, old=decoder.get("replacement", _SPACE_MARK), new=" ")]
    if decoder and kind == "Replace" and "String" in decoder["pattern"]:
        return [partial(_replaced, old=decoder["pattern"]["String"], new=decoder["content"])]
    raise UnsupportedError(
        f"{origin}: answers of a given form need a decoder of bytes or of SentencePiece's kind, this is {kind}: "
        "ask for an answer of any form"
    )


def _replaced(value: str | bytes, *, old: str, new: str) -> str | bytes:
    return value.replace(old, new) if isinstance(value, str) else value


def _from_byte_fallback(value: str | bytes) -> str | bytes:
    if isinstance(value, str) and len(value) == 6 and value.startswith("<0x") and value.endswith(">"):
        return bytes.fromhex(value[3:5])
    return value


def _from_byte_level(value: str | bytes, *, bytes_by_character: Mapping[str, int]) -> str | bytes:
    """What holds a character that stands for no byte is text as it is, as in the library."""
    if isinstance(value, str) and all(character in bytes_by_character for character in value):
        return bytes(bytes_by_character[character] for character in value)
    return value


def _byte_level_characters() -> dict[str, int]:
    """The characters with which GPT-2 spells bytes: visible ones themselves, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
