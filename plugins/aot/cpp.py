"""What the writers of C++ tables share: expressions, conditions and named arrays as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from sala_export.ops.common.contract import Contract, Rule
from sala_export.ops.common.expr import identifiers

DATA_TYPES: Mapping[str, str] = {
    "X": "DataType::kActivation",
    "float32": "DataType::kFloat32",
    "float16": "DataType::kFloat16",
    "bfloat16": "DataType::kBFloat16",
    "float8_e4m3fn": "DataType::kFloat8E4M3FN",
    "int8": "DataType::kInt8",
    "int32": "DataType::kInt32",
    "int64": "DataType::kInt64",
}
WIDTH = 120
"""Columns of a line."""
_RELATIONS: Mapping[str, str] = {"==": "kEqual", ">=": "kAtLeast", "<=": "kAtMost"}


class AotError(Exception):
    """An operator or a kernel that cannot be shipped, with its name and the reason in one line."""


class Names:
    """The sizes of an operator in the order in which its C++ functions find them."""

    def __init__(self, contract: Contract) -> None:
        self.operator = contract.name
        self.integers = [a.name for a in contract.attributes if a.type is int]
        self.floats = [a.name for a in contract.attributes if a.type is float]
        self.all = [*self.integers, *contract.dims]

    def expression(self, text: str, constants: Mapping[str, int] | None = None) -> str:
        """A C++ function of the integer attributes and dimensions; `constants` are written into it.

        Raises: AotError if the text names anything else.
        """
        values = {name: f"n[{i}]" for i, name in enumerate(self.all)}
        values |= {name: f"int64_t{{{value}}}" for name, value in (constants or {}).items()}
        used = identifiers(text)
        if unknown := used - values.keys():
            raise AotError(f"{self.operator}: {text!r} uses unknown names {', '.join(sorted(unknown))}")
        written = re.sub(r"[A-Za-z_]\w*", lambda name: values.get(name[0], name[0]), text)
        return f"[](const int64_t*{' n' if used & set(self.all) else ''}) -> int64_t {{ return {written}; }}"

    def condition(self, rule: Rule) -> str:
        """A `Condition`."""
        text = f"{rule.left} {rule.relation} {rule.right}"
        relation = f"Relation::{_RELATIONS[rule.relation]}"
        left, right = self.expression(rule.left), self.expression(rule.right)
        return braced((quoted(text), left, relation, right, quoted(rule.doc)))


class Arrays:
    """Definitions of named arrays, in the order in which they were asked for."""

    def __init__(self, specifier: str) -> None:
        self._specifier = specifier
        self._definitions: list[str] = []

    def add(self, element: str, name: str, items: Iterable[str]) -> str:
        """Define `k<name>` unless it would be empty; returns what to initialise a span with."""
        lines = list(items)
        if not lines:
            return "{}"
        head = f"{self._specifier} {element} k{name}[] = {{"
        one_line = f"{head}{', '.join(lines)}}};"
        self._definitions.append(one_line if len(one_line) <= WIDTH else f"{head}\n    {_column(lines)}}};")
        return f"k{name}"

    def __str__(self) -> str:
        return "".join(f"{definition}\n\n" for definition in self._definitions)


def _column(lines: Sequence[str]) -> str:
    return ",\n    ".join(lines)


def braced(parts: Sequence[str]) -> str:
    """The parts in braces as an item of an array, on as few lines as hold them."""
    lines = [f"{{{parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < WIDTH - 12:
            lines[-1] += f", {part}"
        else:
            lines[-1] += ","
            lines.append(part)
    return "\n     ".join(lines) + "}"


def quoted(text: str) -> str:
    return json.dumps(text)
