"""Python literals mean what Python says."""

from __future__ import annotations

import ast
import itertools
import random
import warnings
from typing import Any

import pytest

from sala_export.serving.parsing.json_copy import DEPTH_LIMIT
from sala_export.serving.parsing.python_literal import literal_value


def by_python(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def test_escapes_mean_what_python_says() -> None:
    escapes = [
        *map(chr, range(32, 127)),
        "é",
        "\n",
        "x41",
        "101",
        "07",
        "u00e9",
        "U0001f600",
        "N{BULLET}",
        "N{no such}",
    ]
    escapes = [escape for escape in escapes if escape not in ("'", '"')]
    for escape, prefix, quote in itertools.product(escapes, ["", "r", "U"], ["'", '"', "'''", '"""']):
        text = f"{prefix}{quote}a\\{escape}b{quote}"
        try:
            expected = by_python(text)
        except SyntaxError:
            with pytest.raises(ValueError, match=r"escape|has the name"):
                literal_value(text)
            continue
        assert literal_value(text) == expected, text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0",
            "-1",
            "+ 2",
            "1_000",
            "0xFf",
            "0b1_0",
            "0o17",
            "1.",
            ".5",
            "1e5",
            "1E-5",
            "-1_0.5e+1_0",
            "00",
            "9" * 400,
        ),
        *(
            "True",
            "None",
            "''",
            '""',
            "''''''",
            "'' \"\" ''",
            "'a' # it's\n 'b'",
            '"""it\'s ""not"" over"""',
            "'''\n'\\''''",
        ),
        *(
            "()",
            "(1)",
            "(1,)",
            "((1),)",
            "[]",
            "[1, ]",
            "{}",
            "{'a': 1, 2: (3, [4]),}",
            "{None: 1, 2.5: 2}",
            "[1,\n#x]\n2]",
        ),
        *(" [1] ", "{'a'\n:\n'b'}", "{'a': 1, 'a': 2}"),
    ],
)
def test_literals_mean_what_python_says(text: str) -> None:
    def lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: lists(inner) for key, inner in value.items()}
        return [lists(inner) for inner in value] if isinstance(value, list | tuple) else value

    value, expected = literal_value(text), lists(by_python(f"({text}\n)"))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "name",
            "a.b",
            "f(1)",
            "1 + 1",
            "1 - 1",
            "- -1",
            "not True",
            "1j",
            "b'a'",
            "f'a'",
            "rb'a'",
            "{1, 2}",
            "...",
        ),
        *(
            "'a",
            "'a' 1",
            "1 2",
            "[1",
            "[1)",
            "(",
            "[,]",
            "[1,,2]",
            "{1: }",
            "{1}",
            "{[]: 1}",
            "{**a}",
            "[*a]",
            "'''a'",
            "007",
        ),
        *(
            "1e999",
            "1__0",
            "0x",
            "9" * 5000,
            "-" * 5000 + "1",
            "1-" * 5000 + "1",
            r"'\x4'",
            r"'\U00110000'",
            "lambda: 1",
        ),
    ],
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        literal_value(text)


def test_words_of_json_and_texts_over_lines_are_literals() -> None:
    assert literal_value('[true, false, null, "a\nb\x00"]') == [True, False, None, "a\nb\x00"]


def test_brackets_are_followed_to_the_limit() -> None:
    deepest = "[" * DEPTH_LIMIT + "]" * DEPTH_LIMIT
    assert literal_value(deepest) == by_python(deepest)
    with pytest.raises(ValueError, match="no Python literal"):
        literal_value(f"[{deepest}]")


def test_random_values_come_back_from_their_repr() -> None:
    rng = random.Random(4)

    def value(depth: int) -> Any:
        match rng.randrange(6 if depth else 4):
            case 0:
                return rng.choice([None, True, False, rng.getrandbits(80), -rng.random() * 1e-200])
            case 4:
                return [value(depth - 1) for _ in range(rng.randrange(4))]
            case 5:
                return {repr(value(0)): value(depth - 1) for _ in range(rng.randrange(4))}
        return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x3000), 0x1F642, 0xD800])) for _ in range(9))

    for _ in range(500):
        expected = value(4)
        assert literal_value(repr(expected)) == expected
