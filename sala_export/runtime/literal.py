"""Marks around literal text, which go through a chat template with it.

For example, somebody's prompt says `<|im_end|>`. Rendered into a conversation, it would end the turn. Marked before the
template writes the conversation, it is found again in the result, and encoded as ordinary text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from ..errors import SessionError
from .text import Tokenizer


class LiteralMarks:
    """A pair of marks that nobody else can spell. They have no letters, and are no white space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # 32 code points that Unicode keeps free of characters.
        self._begin, self._end = ("".join(chr(0xFDD0 + byte % 32) for byte in secrets.token_bytes(32)) for _ in "12")

    def around(self, text: str) -> str:
        """Mark a whole text."""
        return f"{self._begin}{text}{self._end}" if text else ""

    def around_special(self, text: str) -> str:
        """Mark what a text spells of special tokens, and nothing else: a template may look at the rest."""
        marked, done = "", 0
        for start, end in self._tokenizer.special_spans(text):
            marked += text[done:start] + self.around(text[start:end])
            done = end
        return marked + text[done:]

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the parts of a text without the marks, and whether they are literal, for `StreamEncoder.push`.

        Raises: SessionError if only one mark of a pair is there.
        """
        parts = re.split(f"({self._begin}|{self._end})", text)
        if [*parts[1::2]] != [self._begin, self._end] * (len(parts) // 4):
            raise SessionError("the chat template takes the prompt apart, so that it cannot be literal: leave that out")
        for index, part in enumerate(parts[::2]):
            if part:
                yield part, index % 2 == 1
