"""What a chat template may spend: work, so that it ends soon, and text, so that it fits into memory.

A template is a program of a stranger. Ten nested loops never end, and forty doublings of a text fill any memory, all
within the rules of the language. So whatever a template does is paid for before it is done. The limits are some hundred
times what templates of real checkpoints need, and grow with the conversation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from jinja2.exceptions import TemplateRuntimeError

STEP = 64
"""Work that takes about a microsecond."""

_WORK, _WORK_PER_CHARACTER, _WORK_PER_VALUE = 1 << 24, 64, 1 << 17
_TEXT, _TEXT_PER_CHARACTER = 1 << 24, 64
_MOST_VALUES = 1 << 22
_MOST_DEPTH = 100


class _Budget:
    """What is left to one rendering."""

    def __init__(self, characters: int, values: int) -> None:
        """Args: of the conversation; values: messages, their fields, and all that those hold."""
        self.work = _WORK + _WORK_PER_CHARACTER * characters + _WORK_PER_VALUE * values
        self.text = _TEXT + _TEXT_PER_CHARACTER * characters


_current: ContextVar[_Budget] = ContextVar("budget of the template that runs")


@contextmanager
def budget_for(values: object) -> Iterator[None]:
    """Give what runs inside a budget of its own. Args: values: what the template is given."""
    token = _current.set(_Budget(*_measured(values, _MOST_VALUES)[:2]))
    try:
        yield
    finally:
        _current.reset(token)


def spend(work: int) -> None:
    """Pay for work. Raises: TemplateRuntimeError if there is not enough left."""
    budget = _current.get()
    budget.work -= work
    if budget.work < 0:
        raise TemplateRuntimeError("it computes for too long")


def make(characters: int) -> None:
    """Pay for text, or for a list that takes as much memory. Raises: as `spend`."""
    budget = _current.get()
    budget.text -= characters
    if budget.text < 0:
        raise TemplateRuntimeError("it makes too much text")
    spend(characters >> 3)


def look_at(value: object) -> int:
    """Pay for reading a value with all that it holds, and return its characters as text, about. Raises: as `spend`."""
    return look_into(value)[0]


def look_into(value: object) -> tuple[int, int]:
    """As `look_at`, and the sum of the absolute integers that it holds."""
    if isinstance(value, str | bytes):
        spend(1 + (len(value) >> 4))
        return len(value), 0
    if value is None or isinstance(value, bool | float):
        return 5, 0
    size, values, numbers = _measured(value, _current.get().work // STEP)
    spend(STEP * values + (size >> 4))
    return size, numbers


def _measured(value: object, most: int) -> tuple[int, int, int]:
    """Characters of a value as text, about, how many values it holds, and the sum of its absolute integers.

    What it holds by several ways counts each time, as it does in a text. Raises: TemplateRuntimeError if there are more
    than `most`, or if lists are nested too deeply.
    """
    size = values = numbers = 0
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        members: Collection[object] = ()
        if isinstance(item, str | bytes | bytearray):
            size += len(item)
        elif isinstance(item, int):
            size += item.bit_length() // 3
            numbers += abs(item)
        elif isinstance(item, range):
            size += 8 * len(item)
            values += len(item) >> 3
        elif isinstance(item, dict | Mapping):
            members = [part for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | Collection):
            members = item
        size += 2 + 2 * len(members)
        values += 1
        if values + len(waiting) + len(members) > most:
            raise TemplateRuntimeError("it works on values that are too large")
        if depth > _MOST_DEPTH:
            raise TemplateRuntimeError(f"it nests values more than {_MOST_DEPTH} deep")
        waiting.extend((member, depth + 1) for member in members)
    return size, values, numbers
