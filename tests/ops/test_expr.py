"""Size expressions of contracts and launches."""

from __future__ import annotations

import pytest

from sala_export.ops.common.expr import evaluate, identifiers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("T", 65),
        ("4 * num_heads * head_dim", 4096),
        ("2 * (num_heads + 2) * head_dim - T", 2 * 34 * 32 - 65),
        ("cdiv(T, 32)", 3),
        ("cdiv(T - 1, 32)", 2),
        ("fdiv(T, 32)", 2),
        ("fdiv(T - 97, 16) + 1", -1),
        ("cdiv(T - 97, 16)", -2),
        ("min(T, 64) + max(T, 64)", 129),
        ("max(0, fdiv(T - 32, 16) + 1)", 3),
        ("is_power_of_two(num_heads)", 1),
        ("is_power_of_two(T)", 0),
        ("is_power_of_two(T - 64)", 1),
        ("is_power_of_two(T - 65)", 0),
        ("is_power_of_two(T - 67)", 0),
    ],
)
def test_expression_has_the_value_of_integer_arithmetic(text: str, value: int) -> None:
    """Division of negative numbers rounds down in fdiv and up in cdiv, unlike C++'s `/`."""
    assert evaluate(text, {"T": 65, "num_heads": 32, "head_dim": 32}) == value


def test_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="capacity"):
        evaluate("capacity + 1", {"T": 1})


@pytest.mark.parametrize(
    "text",
    [
        "T / 2",
        "T // 2",
        "T % 2",
        "T ** 2",
        "-T",
        "1.5",
        "'T'",
        "T if T else 1",
        "T < 2",
        "cdiv(T)",
        "is_power_of_two(T, 2)",
        "min(T, 2, 3)",
        "abs(T, T)",
        "T.real",
        "cdiv(a=T, b=2)",
        "min(T, 2, key=T)",
        "True",
    ],
)
def test_anything_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an integer expression"):
        evaluate(text, {"T": 3})


def test_identifiers_are_the_names_without_functions() -> None:
    assert identifiers("cdiv(T, 32) * num_heads + min(C, max(T, 4))") == {"T", "num_heads", "C"}
    assert identifiers("3 + 4") == set()
