"""What a chat template may compare a message with: the texts and numbers in it, and what it makes of them.

Jinja's own `as_const` folds no operators in a sandbox, and it runs filters whose results nothing bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jinja2 import nodes

MOST_TEXT = 4096
"""Characters of a text that messages are tried with."""
_MOST_NUMBER = 1 << 60
_OPERATORS: dict[type[nodes.Expr], Callable[[Any, Any], Any]] = {
    nodes.Add: operator.add,
    nodes.Sub: operator.sub,
    nodes.Mul: operator.mul,
    nodes.Div: operator.truediv,
    nodes.FloorDiv: operator.floordiv,
    nodes.Pow: operator.pow,
}
_COUNTING = {"count", "split", "rsplit", "splitlines", "wordcount"}


class Constants(NamedTuple):
    """What a template may compare messages with."""

    texts: list[str]
    number: float
    """The largest number, times the most that the template scales another by. Lengths may be compared with it."""
    counts: bool
    """The template may count how often a message holds a text."""


def constants_of(tree: nodes.Template, given: Iterable[object]) -> Constants:
    """The constants of a template which compiles. Args: given: values of variables that it reads."""
    known: dict[int, object] = {}
    # Each after its parts.
    for node in reversed(list(tree.find_all(nodes.Expr))):
        known[id(node)] = _value(node, known)
    values = [*known.values(), *given]
    # Also what `{% set name %}text{% endset %}` holds, and what a macro writes.
    written = ["".join(part.data for part in block.find_all(nodes.TemplateData)) for block in _blocks(tree)]
    texts = [value for value in values if isinstance(value, str)] + written + [text.strip() for text in written]
    number = max((_size(value) for value in values if isinstance(value, int | float)), default=0)
    return Constants(texts, number * _scale(tree, known), _counts(tree))


def _blocks(tree: nodes.Template) -> Iterable[nodes.Node]:
    return tree.find_all((nodes.AssignBlock, nodes.Macro))


def _counts(tree: nodes.Template) -> bool:
    names = {node.attr for node in tree.find_all(nodes.Getattr)} | {node.name for node in tree.find_all(nodes.Filter)}
    return not _COUNTING.isdisjoint(names)


def _scale(tree: nodes.Template, known: Mapping[int, object]) -> float:
    """The most that a number is multiplied or divided by: `length / 4 > 2000000` asks for a length of 8000000."""
    sides = [
        _size(known[id(side)])
        for node in tree.find_all((nodes.Mul, nodes.Div, nodes.FloorDiv))
        for side in (node.left, node.right)
        if known[id(node)] is None and _is_number(known[id(side)])
    ]
    return max([1.0, *sides, *(1 / side for side in sides if side)])


def _value(node: nodes.Expr, known: Mapping[int, object]) -> object:
    """The value of an expression of constants whose parts are known. None if it is not constant, or too large."""
    if isinstance(node, nodes.Const):
        return node.value
    if isinstance(node, nodes.List | nodes.Tuple):
        return [known.get(id(item)) for item in node.items]
    if isinstance(node, nodes.Concat):
        return _joined("", [known.get(id(part)) for part in node.nodes])
    if isinstance(node, nodes.BinExpr) and type(node) in _OPERATORS:
        return _result(type(node), known.get(id(node.left)), known.get(id(node.right)))
    if isinstance(node, nodes.Filter) and node.name == "join":
        return _joined(known.get(id(node.args[0])) if node.args else "", known.get(id(node.node)))
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "join":
        return _joined(known.get(id(node.node.node)), known.get(id(node.args[0])) if node.args else None)
    return None


def _joined(separator: object, parts: object) -> str | None:
    if not isinstance(separator, str) or not isinstance(parts, list):
        return None
    texts = [str(part) for part in parts if isinstance(part, str | int | float)]
    if len(texts) < len(parts) or sum(map(len, texts)) + len(separator) * len(texts) > MOST_TEXT:
        return None
    return separator.join(texts)


def _result(kind: type[nodes.Expr], left: object, right: object) -> object:
    if kind is nodes.Add and isinstance(left, str) and isinstance(right, str):
        return _joined("", [left, right])
    if not (_is_number(left) and _is_number(right)):
        return None
    if max(_size(left), _size(right)) == _MOST_NUMBER or (kind is nodes.Pow and _size(right) > 64):
        return _MOST_NUMBER
    try:
        return _OPERATORS[kind](left, right)
    except OverflowError:
        return _MOST_NUMBER
    except ZeroDivisionError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _size(value: Any) -> float:
    """The absolute value of a number, or a bound that stands for all beyond it."""
    return abs(value) if abs(value) <= _MOST_NUMBER else _MOST_NUMBER
