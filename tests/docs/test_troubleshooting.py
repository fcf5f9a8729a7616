"""Every message that docs/troubleshooting.md quotes is still one that the code prints."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
_BLOCK = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NEIGHBOURS = re.compile(r'"((?:[^"\\\n]|\\.)*)"(?:\s*"((?:[^"\\\n]|\\.)*)")*')
_LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')


def quoted() -> list[str]:
    """The messages, a line each, without the words before every one of the command line."""
    lines = [line for block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) for line in block.splitlines()]
    return [line.removeprefix("error: ") for line in lines]


def fixed_parts(message: str) -> list[str]:
    """What stands between the placeholders, as far as it says anything."""
    return [part for part in message.split("...") if re.search(r"\w{2}", part)]


def python_texts(path: Path) -> Iterator[str]:
    """String literals as Python joins them; of an f-string the parts between its braces."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def cpp_texts(path: Path) -> Iterator[str]:
    """String literals as C++ joins neighbours."""
    for match in _NEIGHBOURS.finditer(path.read_text(encoding="utf-8")):
        yield "".join(_LITERAL.findall(match.group(0)))


@functools.cache
def texts() -> str:
    """All literals of the code, a line each."""
    found = [text for path in sorted((ROOT / "sala_export").rglob("*.py")) for text in python_texts(path)]
    found += [text for path in sorted((ROOT / "benchmarks").glob("*.py")) for text in python_texts(path)]
    for suffix in ("*.cc", "*.h"):
        found += [text for path in sorted((ROOT / "runtime" / "src").rglob(suffix)) for text in cpp_texts(path)]
    return "\n".join(text.replace("\n", " ") for text in found)


@pytest.mark.parametrize("message", quoted())
def test_quoted_message_is_in_the_code(message: str) -> None:
    parts = fixed_parts(message)
    assert parts
    assert [part for part in parts if part not in texts()] == []


def test_message_that_nobody_prints_is_found() -> None:
    assert fixed_parts("... was saved from another planet") == [" was saved from another planet"]
    assert " was saved from another planet" not in texts()


def test_every_symptom_says_something_below_its_heading() -> None:
    symptoms = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(symptoms) > 20
    for symptom in symptoms:
        prose = _BLOCK.sub("", symptom).split("\n", 1)[1]
        assert len(prose.split()) >= 10, symptom
