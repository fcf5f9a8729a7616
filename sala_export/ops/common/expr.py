"""Integer expressions over named sizes, written so that Python and C++ read the same text.

Operator contracts and kernel launches state sizes as text such as `4 * num_heads * head_dim` or `cdiv(T, 32)`.
Python evaluates the text here; `plugins/aot` pastes it into generated C++, where the functions have the same meaning on
`int64_t`. Division is only available as `cdiv` (round up) and `fdiv` (round down): `/` and `//` mean different things
in the two languages. `is_power_of_two` is 1 for 1, 2, 4 and so on, else 0.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping

_FUNCTIONS: Mapping[tuple[str, int], Callable[..., int]] = {
    ("cdiv", 2): lambda a, b: -(-a // b),
    ("fdiv", 2): lambda a, b: a // b,
    ("min", 2): min,
    ("max", 2): max,
    ("is_power_of_two", 1): lambda a: int(a >= 1 and a & (a - 1) == 0),
}
"""By name and number of arguments; `plugins/common/expression.h` has the same for C++."""


def evaluate(text: str, names: Mapping[str, int]) -> int:
    """Value of `text` with its identifiers taken from `names`.

    Raises: KeyError for an unknown identifier; ValueError for anything outside the grammar.
    """
    return _value(_parsed(text), names)


@functools.cache
def _parsed(text: str) -> ast.expr:
    """The expression of a text. Raises: ValueError if it is none."""
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ValueError(f"not an integer expression: {text}") from None


def identifiers(text: str) -> set[str]:
    """The names that `text` depends on, functions left out."""
    found = {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
    return found - {name for name, _ in _FUNCTIONS}


def _value(node: ast.expr, names: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, names) + _value(right, names)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left, names) - _value(right, names)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left, names) * _value(right, names)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if (name, len(args)) in _FUNCTIONS:
            return _FUNCTIONS[name, len(args)](*(_value(argument, names) for argument in args))
    raise ValueError(f"not an integer expression: {ast.unparse(node)}")
