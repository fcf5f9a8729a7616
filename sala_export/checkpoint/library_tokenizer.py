"""The `tokenizers` library behind a boundary: whatever it raises is one line, its panics included.

It is written in Rust. Where that code meets what it does not expect, it panics: it prints to the standard error of the
process, and Python gets a `PanicException`, which is no `Exception`.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

import tokenizers

from ..errors import BundleError, SalaError, SessionError
from .tokenizer_limits import MOST_BYTES, PARTS, UNCHANGED, Growth, Spec, limited_growth

_P = ParamSpec("_P")
_T = TypeVar("_T")

_STDERR = 2
_MOST_REASON = 300
_one_capture = threading.Lock()
"""Two threads that redirect the descriptor at a time would put back each other's file."""
_captured_panics: list[str] = []


class LibraryTokenizer:
    """A tokenizer of the library. Its methods raise SessionError naming the file where the library fails."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, origin: str, growth: Growth = UNCHANGED) -> None:
        """Args: origin: names the file in errors. growth: of texts by the steps of the tokenizer."""
        self._tokenizer = tokenizer
        self._growth = growth
        self.origin = origin
        self.separator = ""
        """A token that stands for a special one in front of a text. Only a `literal` copy has it."""
        self.added_tokens: dict[int, tokenizers.AddedToken] = self._run(tokenizer.get_added_tokens_decoder)

    @classmethod
    def from_json(cls, content: bytes, origin: str, added: Sequence[tokenizers.AddedToken] = ()) -> LibraryTokenizer:
        """Make a tokenizer of the content of a tokenizer.json, without its truncation and padding.

        Args: added: tokens to add after those of the file, or to give other flags.
        Raises: BundleError naming `origin` if the library does not take the file, or makes much of little with it.
        """
        no_tokenizer = f"{origin} is no tokenizer that this version of `tokenizers` reads"
        content = content.removeprefix(codecs.BOM_UTF8)
        fields = _guarded(_parse, BundleError, no_tokenizer)(content)
        growth = limited_growth(_guarded(_components, BundleError, no_tokenizer)(fields), origin)
        # Reading a file already applies the normalizer to its added tokens.
        size = len(_guarded(json.dumps, BundleError, no_tokenizer)(fields.get("added_tokens")))
        size = (size + sum(len(token.content.encode()) for token in added)) * growth.encoding
        if size > MOST_BYTES:
            raise BundleError(f"{origin}: its normalizer may make {size} bytes of its tokens, at most {MOST_BYTES}")
        return cls(_guarded(_read, BundleError, no_tokenizer)(content, added), origin, growth)

    def literal(self) -> LibraryTokenizer:
        """A copy that takes special tokens in a text for ordinary text, as `split_special_tokens` of transformers.

        It has one token more, `separator`, so that a text can be encoded as the part of another behind a special token.
        """
        copy = self._run(tokenizers.Tokenizer.from_str, self._run(self._tokenizer.to_str))
        copy.encode_special_tokens = True
        literal = LibraryTokenizer(copy, self.origin, self._growth)
        # Nobody else can spell it.
        literal.separator = f"\ufdd0{secrets.token_hex(16)}"
        self._run(copy.add_tokens, [tokenizers.AddedToken(literal.separator, normalized=False)])
        return literal

    def is_special(self, token_id: int) -> bool:
        """True for a special token, which a text may spell unless it is literal."""
        token = self.added_tokens.get(token_id)
        return token is not None and token.special

    def skipped_ids(self) -> frozenset[int]:
        """Special tokens that `skip_special_tokens` leaves out: not those that a normalizer has spelled differently."""
        special = {token.content for token in self.added_tokens.values() if token.special}
        return frozenset(token_id for token_id in self.added_tokens if self.token(token_id) in special)

    def spec(self) -> Spec:
        """The tokenizer.json that the library writes, parsed: every field is there, and of its type."""
        spec: Spec = json.loads(self._run(self._tokenizer.to_str))
        return spec

    def encode(self, text: str, *, add_special_tokens: bool) -> tokenizers.Encoding:
        """Encode a text."""
        self._require_room(len(text.encode(errors="surrogatepass")) * self._growth.encoding)
        return self._run(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Decode token ids as text."""
        ids = list(token_ids)
        self._require_room(self._run(self._spelled_bytes, ids) * self._growth.decoding)
        return self._run(self._tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The spelling of one token. None if there is no such token."""
        return self._run(self._tokenizer.id_to_token, token_id) if 0 <= token_id < 1 << 32 else None

    def token_id(self, token: str) -> int | None:
        """The id of a spelling. None if there is no such token."""
        return self._run(self._tokenizer.token_to_id, token)

    def _spelled_bytes(self, token_ids: list[int]) -> int:
        spellings = map(self._tokenizer.id_to_token, token_ids)
        return sum(len(spelling.encode()) or 1 for spelling in spellings if spelling is not None)

    def _require_room(self, size: int) -> None:
        if size > MOST_BYTES:
            raise SessionError(
                f"{self.origin}: the text may become {size} bytes by its steps, at most {MOST_BYTES}: shorten the text"
            )

    def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return _guarded(function, SessionError, f"{self.origin}: the tokenizer fails")(*args, **kwargs)


@contextmanager
def hidden_panics() -> Iterator[None]:
    """Keep what panics print from the standard error of the process; everything else is written there at the end."""
    with _one_capture:
        try:
            shown = os.dup(_STDERR)
        except OSError:  # It is closed: nothing is printed.
            yield
            return
        hidden = os.memfd_create("stderr")
        os.dup2(hidden, _STDERR)
        _captured_panics.clear()
        try:
            yield
        finally:
            os.dup2(shown, _STDERR)
            os.close(shown)
            _give_back(os.pread(hidden, os.fstat(hidden).st_size, 0), _captured_panics)
            os.close(hidden)


def _give_back(written: bytes, panics: Sequence[str]) -> None:
    for panic in panics:
        header = rb"\n?thread '[^\n]*panicked at [^\n]*\n"
        trace = rb"(?:stack backtrace:\n(?: [^\n]*\n)*)?(?:note: [^\n]*RUST_BACKTRACE[^\n]*\n)?"
        message = re.escape(panic.encode(errors="replace"))
        written = re.sub(header + message + rb"\n" + trace, b"", written, count=1)
    with suppress(OSError):  # Nobody can be told.
        while written:
            written = written[os.write(_STDERR, written) :]


def _parse(content: bytes) -> dict[str, Any]:
    fields = json.loads(content.decode(), object_pairs_hook=_without_repetitions)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds {type(fields).__name__}, expected a JSON object")
    return fields


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses what one reader takes from the first of two fields of a name, and another from the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has two fields of one name")
    return fields


def _components(fields: Mapping[str, Any]) -> Spec:
    """The components of a tokenizer.json as the library writes them, read without tokens to apply them to."""
    empty = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    content = json.dumps(empty | {name: fields.get(name) for name in PARTS})
    spec: Spec = json.loads(tokenizers.Tokenizer.from_str(content).to_str())
    return spec


def _read(content: bytes, added: Sequence[tokenizers.AddedToken]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_buffer(content)
    tokenizer.add_tokens(list(added))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _guarded(function: Callable[_P, _T], error: type[SalaError], what: str) -> Callable[_P, _T]:
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        # The library raises plain Exception for whatever it finds wrong, and its panics cannot be imported by name.
        except BaseException as failure:
            is_panic = type(failure).__name__ == "PanicException"
            if not is_panic and not isinstance(failure, Exception):
                raise
            if is_panic:
                _captured_panics.append(str(failure))
            raise error(f"{what}: {str(failure)[:_MOST_REASON]}") from None

    return run
