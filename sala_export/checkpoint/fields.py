"""Typed access to the fields of a JSON object, with errors that name the field."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from ..errors import ConfigError

_MOST = 2**31 - 1
"""Of every size and token id: runtimes count in int32."""
_LARGEST = sys.float_info.max


class JsonFields:
    """Fields of a JSON object; null means absent. Every getter raises ConfigError naming the field."""

    def __init__(self, fields: Mapping[str, Any], prefix: str = "") -> None:
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def value(self, name: str, default: Any = None) -> Any:
        """The field as it is; a field without default must be present."""
        value = self._fields.get(name, default)
        if value is None:
            raise ConfigError(f"{self._prefix}{name} is missing")
        return value

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = "a positive integer" if least == 1 else f"an integer, at least {least}"
            raise ConfigError(f"{self._prefix}{name} is {shown(value)}, expected {expected}")
        if value > _MOST:
            raise ConfigError(f"{self._prefix}{name} is {shown(value)}, expected at most {_MOST}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LARGEST:
            raise ConfigError(f"{self._prefix}{name} is {shown(value)}, expected a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._prefix}{name} is {shown(value)}, expected true or false")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{self._prefix}{name} is {shown(value)}, expected a list that is not empty")
        return value

    def object(self, name: str) -> JsonFields:
        """A nested object; an absent one is empty."""
        value = self.value(name, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self._prefix}{name} is {shown(value)}, expected an object")
        return JsonFields(value, f"{self._prefix}{name}.")

    def tokens(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list of them; an absent field is empty."""
        value = self.value(name, [])
        ids = value if isinstance(value, list) else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise ConfigError(
                    f"{self._prefix}{name} is {shown(value)}, expected token ids from 0 to {vocab_size - 1}"
                )
        return tuple(ids)

    def token(self, name: str, vocab_size: int) -> int | None:
        """A token id; an absent field is None."""
        ids = self.tokens(name, vocab_size)
        if len(ids) > 1:
            raise ConfigError(f"{self._prefix}{name} is {shown(list(ids))}, expected one token id")
        return ids[0] if ids else None
