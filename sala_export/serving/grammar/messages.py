"""What the grammar library says, as part of one line."""

from __future__ import annotations

import re

_MOST_REASON = 300
_LISTING = re.compile(r"\n *\d+ \|.*|<non-verbose/>", re.DOTALL)
_LINE = re.compile(r"^(?:at )?(\d+)\(\d+\): ")
_STAGE = re.compile(r"^failed to compile JSON schema: ")


def reason(message: str) -> str:
    """The message without the place in the grammar, the grammar itself, and line ends."""
    text = _STAGE.sub("", _LINE.sub("", _LISTING.sub("", message)))
    return " ".join(text.split())[:_MOST_REASON]


def line_number(message: str) -> int | None:
    """The line of the grammar that the message is about, counted from 1. None if it is about all of it."""
    match = _LINE.match(message)
    return int(match[1]) if match else None
