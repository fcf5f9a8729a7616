"""Writes grammars in the Lark syntax of llguidance."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from ...errors import RequestError
from .vocabulary import Vocabulary

HEADER = '%llguidance {"no_forcing": true}'
"""Forced bytes come as whatever tokens the model prefers. The library would split them without the text before."""
_MOST_BYTES = 2 << 20
_WHITE_SPACE = r"\x20|\r?\n[\x20\t]{0,64}"
"""Between the parts of a JSON text: a space, or a line end and indentation. A model could write any number of them."""


class Lark:
    """A grammar in the making. Every rule stands on a line of its own, and belongs to a part of the request."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lines = [HEADER]
        self._owners = [""]
        self._bytes = 0
        self._shared: dict[str, str] = {}
        self._numbers = itertools.count()

    def rule(self, body: str, owner: str = "", *, name: str | None = None, lazy: bool = False) -> str:
        """Add a rule and return its name. Args: owner: the part of the request that it comes from, for errors."""
        name = name or self.reserved()
        self._bytes += len(body)
        if self._bytes > _MOST_BYTES:
            raise RequestError(
                f"{owner or 'the request'}: its grammar passes {_MOST_BYTES} bytes: send smaller schemas"
            )
        self._lines.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        self._owners.append(owner)
        return name

    def reserved(self) -> str:
        """A name that no other rule has."""
        return f"r{next(self._numbers)}"

    def terminal(self, body: str, owner: str) -> str:
        """Add a terminal, whose regular expressions may be joined by `&`, and return its name."""
        return self.rule(body, owner, name=self.reserved().upper())

    def shared(self, body: str, *, name: str | None = None, lazy: bool = False) -> str:
        """The rule with this body that belongs to no part of the request, added where it is not there yet."""
        if body not in self._shared:
            self._shared[body] = self.rule(body, name=name, lazy=lazy)
        return self._shared[body]

    def text(self, text: str) -> str:
        """The expression for a fixed text. Markers in it are tokens."""
        pieces = self._vocabulary.pieces(text)
        return " ".join(f"<[{piece}]>" if isinstance(piece, int) else quoted(piece) for piece in pieces) or '""'

    def text_up_to(self, end: str) -> str:
        """The expression for any text up to the first place where it has `end`, which follows."""
        first, *rest = self._vocabulary.pieces(end)
        tail = self.text(end[len(first) :]) if rest and isinstance(first, str) else ""
        if isinstance(first, int):
            return f"/(?s:.*)/ {self.text(end)}"
        return f"{self.shared(f'/(?s:.*){escaped(first)}/', lazy=True)} {tail}".rstrip()

    def source(self) -> str:
        return "\n".join(self._lines)

    def owner(self, line_number: int | None) -> str:
        """The part of the request that a line of `source` comes from, counted from 1. Empty if it comes from none."""
        return self._owners[line_number - 1] if line_number and line_number <= len(self._owners) else ""


def quoted(text: str) -> str:
    """A text as a literal."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """A text as part of a regular expression between slashes."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def json_value(schema: Mapping[str, Any] | bool) -> str:
    """The expression for a JSON text that a schema allows."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE}}, allow_nan=False)
