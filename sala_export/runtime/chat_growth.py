"""How much filters and methods may make of little: `"a" | center(1000000000)` is a gigabyte."""

from __future__ import annotations

import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

_SHALLOW = {"attr", "batch", "copy", "count", "d", "default", "first", "get", "items", "keys", "last", "length", "list"}
_SHALLOW |= {"map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "values"}
_BY_ATTRIBUTE = {"groupby", "map", "max", "min", "rejectattr", "selectattr", "sort", "sum", "unique"}

_TOO_MUCH = 1 << 62
_MOST_ATTRIBUTES = 50
_MOST_DIGITS = 300
_LIST_PIECE = 64
_INDENTED_LEVELS = 32


def is_shallow(name: str, value: object) -> bool:
    """True if a filter or method passes on what this value holds, and does not look into it."""
    return name in _SHALLOW and not isinstance(value, str | bytes)


def growth(name: str, value: Any, args: tuple[Any, ...], *, size: int, args_size: int, numbers: int) -> int:
    """Characters, or as much memory, that a filter or method needs at most, beyond a few times what it is given.

    Args: size, args_size: characters of the value and of the arguments as text; numbers: the sum of the absolute
    integers that the arguments hold.
    """
    use = _Use(
        value,
        texts=tuple(each for each in args if isinstance(each, str | bytes)),
        numbers=numbers,
        longest=max(map(_length, args), default=0),
        size=size,
        args_size=args_size,
    )
    if name in _BY_ATTRIBUTE and sum(str(text).count(".") for text in use.texts) > _MOST_ATTRIBUTES:
        return _TOO_MUCH
    rule = _RULES.get(name)
    return 0 if rule is None else rule(use)


@dataclass(frozen=True, slots=True)
class _Use:
    value: Any
    """What a filter is applied to, or the owner of a method."""
    texts: tuple[str | bytes, ...]
    """Arguments that are text."""
    numbers: int
    """The sum of the absolute integers that they hold."""
    longest: int
    """Items or characters of the longest argument."""
    size: int
    args_size: int


def _length(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _padded(use: _Use) -> int:
    return use.numbers


def _batched(use: _Use) -> int:
    return use.numbers + _listed(use)


def _listed(use: _Use) -> int:
    """A text becomes a list of its characters."""
    return _LIST_PIECE * len(use.value) if isinstance(use.value, str | bytes) else use.size


def _split(use: _Use) -> int:
    if isinstance(use.value, str) and use.texts and use.texts[0] and isinstance(use.texts[0], str):
        return _LIST_PIECE * (use.value.count(use.texts[0]) + 1)
    return _LIST_PIECE * _length(use.value)


def _formatted(use: _Use) -> int:
    """Widths are numbers in the format, or in arguments that it asks for; each field may be all arguments."""
    text = use.value.decode("latin-1") if isinstance(use.value, bytes) else str(use.value)
    widths = sum(int(width) if len(width) < 20 else _TOO_MUCH for width in re.findall("[0-9]+", text))
    asked = use.numbers if re.search(r"\*|\{[^{}]*\{", text) else 0
    return len(text) + widths + (text.count("%") + text.count("{")) * (use.args_size + asked)


def _replaced(use: _Use) -> int:
    if len(use.texts) < 2:
        return 0
    old, new = use.texts[:2]
    is_text = isinstance(use.value, str) and isinstance(old, str)
    return (use.value.count(old) if is_text else use.size + 1) * len(new)


def _joined(use: _Use) -> int:
    """A filter joins its value, a method its argument."""
    return use.size + use.args_size + use.args_size * _length(use.value) + use.size * use.longest


def _multiplied(use: _Use) -> int:
    return use.size * use.args_size


def _indented(use: _Use) -> int:
    lines = len(use.value.splitlines()) if isinstance(use.value, str) else _length(use.value)
    return (lines + 1) * (use.numbers + use.args_size)


def _expanded(use: _Use) -> int:
    tabulators = use.value.count("\t") if isinstance(use.value, str) else _length(use.value)
    return tabulators * use.numbers


def _dumped(use: _Use) -> int:
    return use.size * (1 + _INDENTED_LEVELS * use.numbers + use.args_size)


def _stripped(use: _Use) -> int:
    """Each tag that is taken out copies the text."""
    return use.size * use.size >> 10


def _rounded(use: _Use) -> int:
    return _TOO_MUCH if use.numbers > _MOST_DIGITS else 0


_RULES: dict[str, Callable[[_Use], int]] = {
    **dict.fromkeys(["center", "ljust", "rjust", "to_bytes", "zfill"], _padded),
    **dict.fromkeys(["dictsort", "groupby", "list", "max", "min", "slice", "sort", "splitlines", "unique"], _listed),
    **dict.fromkeys(["rsplit", "split"], _split),
    **dict.fromkeys(["format", "format_map"], _formatted),
    **dict.fromkeys(["sum", "translate", "wordwrap"], _multiplied),
    **dict.fromkeys(["pprint", "tojson"], _dumped),
    "batch": _batched,
    "expandtabs": _expanded,
    "indent": _indented,
    "join": _joined,
    "replace": _replaced,
    "round": _rounded,
    "striptags": _stripped,
}
