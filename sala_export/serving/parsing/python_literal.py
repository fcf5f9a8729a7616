"""Python literals of a model.

`ast` would read them too. But it warns about every unknown escape, refuses a NUL, and builds a tree that is a hundred
times as large as the text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any, NoReturn

from .json_copy import DEPTH_LIMIT

_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*+)*+
    (?: (?P<string> [rRuU]?+ (?: '''(?:[^'\\]++|\\.|'(?!''))*+''' | \"""(?:[^"\\]++|\\.|"(?!""))*+\"""
                               | '(?!'')(?:[^'\\]++|\\.)*+' | "(?!"")(?:[^"\\]++|\\.)*+" ) )
      | (?P<number> [-+]?+ \s*+ \.?+ [0-9] (?:[0-9A-Za-z_.] | (?<=[eE])[-+](?=[0-9]))*+ )
      | (?P<word> [^\W\d] \w*+ )
      | (?P<mark> [][(){},:] )
      | (?P<end> \Z ) )""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER = re.compile(r"[0-9_]+|0[xXoObB][0-9a-fA-F_]+")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|x(?P<hex>[0-9a-fA-F]{2})|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})"
    r"|N\{(?P<name>[^}]{1,100})\}|(?P<char>.))",
    re.DOTALL,
)
_CHARACTERS = {"\n": "", "\\": "\\", "'": "'", '"': '"'} | dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def literal_value(text: str) -> Any:
    """Read a Python literal: None, a truth value, number, text, list, tuple or dict, nested at most 64 deep.

    JSON's words `true`, `false` and `null` are literals too, because chat templates show models such calls. A tuple is
    read as a list. A text may span lines.

    Raises: ValueError if the text is something else, for example a name, a set, or text before `{}` as in `f"{x}"`.
    """
    literal = _Literal(text)
    value = literal.value(DEPTH_LIMIT)
    if literal.kind != "end":
        literal.refuse()
    return value


class _Literal:
    """A text as tokens, of which one is looked at."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.kind, self.token = "", ""
        self._advance()

    def refuse(self) -> NoReturn:
        raise ValueError(f"no Python literal at character {self._at}")

    def value(self, depth: int) -> Any:
        kind, token = self.kind, self.token
        self._advance()
        if kind == "string":
            return self._string(token)
        if kind == "number":
            return _number(token)
        if kind == "word" and token in _WORDS:
            return _WORDS[token]
        if token not in _CLOSING or not depth:
            self.refuse()
        return self._dict(depth - 1) if token == "{" else self._list(_CLOSING[token], depth - 1)

    def _string(self, token: str) -> str:
        """A text, with those that stand directly behind it, which belong to it."""
        pieces = [_text_of(token)]
        while self.kind == "string":
            pieces.append(_text_of(self.token))
            self._advance()
        return "".join(pieces)

    def _list(self, closing: str, depth: int) -> Any:
        values = []
        comma = False
        while not self._reads(closing):
            values.append(self.value(depth))
            comma = self._comma_before(closing)
        # Brackets around one value are no tuple.
        return values[0] if closing == ")" and len(values) == 1 and not comma else values

    def _dict(self, depth: int) -> Any:
        members = {}
        while not self._reads("}"):
            key = self.value(depth)
            if isinstance(key, list | dict) or not self._reads(":"):
                self.refuse()
            members[key] = self.value(depth)
            self._comma_before("}")
        return members

    def _comma_before(self, closing: str) -> bool:
        comma = self._reads(",")
        if not comma and self.token != closing:
            self.refuse()
        return comma

    def _reads(self, mark: str) -> bool:
        found = self.kind == "mark" and self.token == mark
        if found:
            self._advance()
        return found

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup is None:
            self.refuse()
        self._at = match.end()
        self.kind, self.token = match.lastgroup, match[match.lastgroup]


def _number(token: str) -> int | float:
    digits = token.lstrip("+-").lstrip()
    value = int(digits, 0) if _INTEGER.fullmatch(digits) else float(digits)
    if value == math.inf:
        raise ValueError("a number too large for a float")
    return -value if token.startswith("-") else value


def _text_of(token: str) -> str:
    raw = token[0] in "rR"
    quoted = token.lstrip("rRuU")
    quotes = 3 if quoted[:3] in ("'''", '"""') and len(quoted) > 2 else 1
    text = quoted[quotes:-quotes]
    return text if raw else _ESCAPE.sub(_unescaped, text)


def _unescaped(match: re.Match[str]) -> str:
    if match["char"]:
        char = match["char"]
        if char in "xuUN":
            raise ValueError(f"a cut-off escape: {match[0]}")
        return _CHARACTERS.get(char, "\\" + char)
    if match["name"]:
        try:
            return unicodedata.lookup(match["name"])
        except KeyError:
            raise ValueError(f"no character has the name {match['name']}") from None
    base = 8 if match["octal"] else 16
    return chr(int(match["octal"] or match["hex"] or match["short"] or match["long"], base))
