"""Lists of modules in a quantised checkpoint: full names, and expressions, none of which matches for ever.

For example, `(a*)*b` tries each way to cut a row of `a` before it gives up, and their number doubles with each letter.
A stranger wrote the expressions, so the ways that they have are counted before any of them is used.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from reprlib import repr as shown

from ..errors import ConfigError

PATTERN = "re:"
"""Beginning of an entry that is an expression."""

_MOST_PATTERNS = 500
"""So many are kept compiled."""
_LONGEST = 1000
"""Characters of an expression."""
_WAYS_OF_REPEAT = 16
_MOST_WAYS = 1 << 17
"""Limit of all expressions together: each is tried on a few hundred names of about 30 characters."""

_OPEN, _CLOSE, _OR, _REPEAT, _REFUSED = "open", "close", "or", "repeat", "refused"
_TOKEN = re.compile(
    rf"""
    \\. | \[\^?\]?(?:\\.|[^\]\\])*\]                     # a character, or a set of them
    | (?P<{_REFUSED}> \)[*+{{] | \(\?(?:\#|[a-zA-Z]*x) )  # repeated groups; what hides that a group is repeated
    | (?P<{_OPEN}> \(\?? ) | (?P<{_CLOSE}> \) ) | (?P<{_OR}> \| )
    | (?P<{_REPEAT}> (?: [*+?] | \{{ ) [?+]? )
    | .
    """,
    re.DOTALL | re.VERBOSE,
)


def is_listed(module: str, entries: Sequence[str]) -> bool:
    """True if an entry is the name of this module, or an expression that matches from the start of the name."""
    return any(
        _compiled(entry.removeprefix(PATTERN)).match(module) if entry.startswith(PATTERN) else entry == module
        for entry in entries
    )


def require_quick(entries: Sequence[str], field: str = ".ignore") -> None:
    """Raise ConfigError, which begins with `field`, for what is no expression or may match for ever."""
    expressions = [entry.removeprefix(PATTERN) for entry in entries if entry.startswith(PATTERN)]
    if len(expressions) > _MOST_PATTERNS:
        raise ConfigError(f"{field} holds {len(expressions)} expressions, at most {_MOST_PATTERNS} are taken")
    ways = 0
    for expression in expressions:
        if len(expression) > _LONGEST:
            raise ConfigError(
                f"{field} holds {shown(expression)} of {len(expression)} characters, at most {_LONGEST} are taken"
            )
        try:
            _compiled(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"{field} holds {shown(PATTERN + expression)}, which is no regular expression: {error}"
            ) from None
        ways += _ways(expression)
        if ways > _MOST_WAYS:
            raise ConfigError(
                f"{field} holds {shown(PATTERN + expression)}, which may match for ever: repeat no groups, and use few "
                "repetitions, or list the names"
            )


@functools.lru_cache(_MOST_PATTERNS)
def _compiled(expression: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        # Python warns of sets that a later version may read in another way.
        warnings.simplefilter("ignore")
        return re.compile(expression)


def _ways(expression: str) -> int:
    """About how many ways a valid expression has to match a name."""
    # Of each open group: the ways of its alternatives so far, and of the one that is being read.
    groups = [(0, 1)]
    for kind in _kinds(expression):
        earlier, ways = groups.pop()
        if kind == _REFUSED:
            return _MOST_WAYS + 1
        if kind == _OPEN:
            groups += [(earlier, ways), (0, 1)]
        elif kind == _OR:
            groups.append((earlier + ways, 1))
        elif kind == _REPEAT:
            groups.append((earlier, ways * _WAYS_OF_REPEAT))
        else:
            before, outer = groups.pop()
            groups.append((before, outer * (earlier + ways)))
    return sum(groups[0])


def _kinds(expression: str) -> Iterator[str]:
    return (token.lastgroup for token in _TOKEN.finditer(expression) if token.lastgroup)
