"""Pages speak to their reader in plain sentences: few semicolons, "you" where you act, an example near the top.
Public docstrings stand without the name that they belong to.

`PYTHONPATH=tests python tests/docs/test_plain_words.py` prints the counts of every page.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from support.documents import ROOT, documents

MOST_SEMICOLONS = 4.0
"""Semicolons per 1,000 words of a page, at most. Aim below 3."""
FEWEST_YOU = 2.0
"""Times that a page says you or your per 1,000 words, at least. Aim above 4. Pages below 150 words need none."""
LINES_TO_EXAMPLE = 40
"""A code block, a table or a list begins within this many lines of a page."""

REFERENCE = {
    "CHANGELOG.md",
    "docs/glossary.md",
    "sala_export/bundle/FORMAT.md",
    "sala_export/ops/block_scaled_linear/README.md",
    "sala_export/ops/infllmv2_attention/README.md",
    "sala_export/ops/lightning_attention/README.md",
    "tests/golden/README.md",
}
"""Pages that derive or list. They need not speak to anyone."""

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_RECORDED = re.compile(r"<!-- record: .*?<!-- /record -->", re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_TARGET = re.compile(r"\]\([^)\s]*\)")
_WORD = re.compile(r"[A-Za-z][\w'-]*")
_YOU = re.compile(r"\byou(?:r|rs|rself)?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Counts:
    """What is counted on a page, without code blocks and recorded tables."""

    words: int
    semicolons: int
    you: int

    def per_thousand(self, count: int) -> float:
        return 1000 * count / max(1, self.words)


def count(text: str) -> Counts:
    """Count words, semicolons and words for the reader in the prose of a page. Code in a line is one word."""
    prose = _CODE.sub("code", _TARGET.sub("]", _FENCE.sub("", _RECORDED.sub("", text))))
    return Counts(words=len(_WORD.findall(prose)), semicolons=prose.count(";"), you=len(_YOU.findall(prose)))


def hand_written() -> list[Path]:
    """Pages that people write. A generated page says so at its top."""
    return [path for path in documents() if "<!-- Written by" not in path.read_text(encoding="utf-8")[:400]]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("path", hand_written(), ids=name_of)


@each_page
def test_page_has_few_semicolons(path: Path) -> None:
    counts = count(path.read_text(encoding="utf-8"))
    assert counts.semicolons <= max(2, MOST_SEMICOLONS * counts.words / 1000)


@each_page
def test_page_speaks_to_its_reader(path: Path) -> None:
    counts = count(path.read_text(encoding="utf-8"))
    if counts.words >= 150 and name_of(path) not in REFERENCE:
        assert counts.per_thousand(counts.you) >= FEWEST_YOU


@each_page
def test_page_begins_with_something_to_look_at(path: Path) -> None:
    top = path.read_text(encoding="utf-8").splitlines()[:LINES_TO_EXAMPLE]
    assert name_of(path) in REFERENCE or any(line.lstrip().startswith(("```", "|", "- ", "* ", "1. ")) for line in top)


def test_code_and_recorded_tables_do_not_count() -> None:
    text = "You see.\n```\na; b; you\n```\n`c; d`\n<!-- record: x -->\n;;;\n<!-- /record -->\n[a](b;c)\n"
    assert count(text) == Counts(words=4, semicolons=0, you=1)


def public_docstrings(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of public functions, classes and attributes."""
    for before, node in zip([None, *tree.body], tree.body, strict=False):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) if not name.startswith("_"):
                yield node.lineno, ast.get_docstring(node) or ""
                if isinstance(node, ast.ClassDef):
                    yield from public_docstrings(node)
            case ast.Expr(value=ast.Constant(value=str(text))) if isinstance(before, ast.Assign | ast.AnnAssign):
                target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
                if not ast.unparse(target).startswith("_"):
                    yield node.lineno, text


FRAGMENT = re.compile(r"(Of|Whether|As|None|False|True): |(Of|Whether|By|From the) ")
"""Beginnings of docstrings that a reader must complete with the name before them."""


@pytest.mark.parametrize("module", sorted((ROOT / "sala_export").rglob("*.py")), ids=name_of)
def test_docstring_stands_without_the_name_it_belongs_to(module: Path) -> None:
    found = public_docstrings(ast.parse(module.read_text(encoding="utf-8")))
    assert [(line, text) for line, text in found if FRAGMENT.match(text)] == []


def test_fragment_is_found() -> None:
    module = 'class A:\n    """Of one."""\n    b: int\n    """Whether it is."""\n    _c: int\n    """Of it."""\n'
    found = [text for _, text in public_docstrings(ast.parse(module)) if FRAGMENT.match(text)]
    assert found == ["Of one.", "Whether it is."]


def main() -> None:
    """Print the counts of every page."""
    click.echo("words   ; per 1,000   you per 1,000   page")
    for path in hand_written():
        counts = count(path.read_text(encoding="utf-8"))
        semicolons, you = counts.per_thousand(counts.semicolons), counts.per_thousand(counts.you)
        click.echo(f"{counts.words:5} {semicolons:13.1f} {you:15.1f}   {name_of(path)}")


if __name__ == "__main__":
    main()
