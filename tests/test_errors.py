"""Messages are one line, whatever they tell of."""

from __future__ import annotations

import json
import os
import unicodedata

import pytest
from support.documents import ROOT

from sala_export.errors import BundleError, SalaError, printable, printable_text

# The table that the test of the C++ messages reads too.
CASES = json.loads((ROOT / "runtime" / "tests" / "printable_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_printed_text_is_the_same_in_python_and_cpp(case: dict[str, str]) -> None:
    text = os.fsdecode(bytes.fromhex(case["bytes"]))
    assert printable(text) == case["printed"]
    assert str(SalaError(text)) == case["printed"]
    assert printable(case["printed"]) == case["printed"]


def test_no_control_character_and_no_separator_passes() -> None:
    for code in range(0x110000):
        character = chr(code)
        passes = printable(character) == character
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _DIRECTIONS:
            assert not passes, hex(code)
        elif category != "Cf":
            assert passes, hex(code)


_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_half_a_surrogate_pair_can_be_printed() -> None:
    message = str(BundleError("name \ud800 of a file \udcff"))
    assert message == r"name \ud800 of a file \xff"
    assert message.encode()


def test_long_value_leaves_the_beginning_and_the_end_of_a_message() -> None:
    message = str(BundleError(f'model is "{"x" * 10_000_000}": copy it again'))
    assert len(message) < 4000
    assert message.startswith('model is "x')
    assert message.endswith('x": copy it again')
    assert str(BundleError("x" * 4000)) == "x" * 4000


def test_text_keeps_its_lines() -> None:
    assert printable_text("one\n\ttwo\r\x1b[31m\x07\u202e end") == "one\n\ttwo\\r\\x1b[31m\\x07\\u202e end"
