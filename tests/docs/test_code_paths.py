"""Files that docstrings and comments name exist, as those that documents name do."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import ROOT, Document

_FOLDERS = ("benchmarks", "examples", "plugins", "runtime", "sala_export", "scripts", "tests")
_SOURCES = ("*.py", "*.c", "*.cc", "*.h")
_CPP_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_PATH = re.compile(r"(?<![\w/.<>{}*-])(?:[\w.<>{},*-]+/)*[\w.<>{},*-]+\.(?:c|cc|cmake|h|md|py|pyi|sh|toml)\b(?!\.\w)")
ELSEWHERE = {"cuda.h", "kernel_index.cc", "my.toml"}
"""NVIDIA's, written by the build, and a reader's own."""


def told(path: Path) -> Iterator[str]:
    """Comments of a source file, and docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from _CPP_COMMENT.findall(text)
        return
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def missing(path: Path) -> list[str]:
    """Files that a source file names and that are not there."""
    named = {word for text in told(path) for word in _PATH.findall(text)} - ELSEWHERE
    return sorted(word for word in named if not Document(path).exists(word))


def sources(folder: str) -> list[Path]:
    return sorted(path for pattern in _SOURCES for path in (ROOT / folder).rglob(pattern))


@pytest.mark.parametrize("folder", _FOLDERS)
def test_files_that_code_names_exist(folder: str) -> None:
    assert sources(folder)
    assert {str(path.relative_to(ROOT)): words for path in sources(folder) if (words := missing(path))} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""As in docs/no_such_page.md."""\n'),
        ("a.py", "x = 1  # see no_such_file.py\n"),
        ("a.cc", "// From no_such_file.h.\n"),
        ("a.h", "/* In runtime/src/no_such_file.cc,\n * or so. */\n"),
    ],
)
def test_file_that_is_missing_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(missing(tmp_path / name)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""`sala_export/ops/<op>/schema.py`, `specs.py`, plugins/common/operator.h and engines/*.toml."""\n'),
        ("a.py", 'path = "no_such_file.py"\n'),
        ("a.cc", '#include "no_such_file.h"\n'),
    ],
)
def test_file_that_is_there_or_only_code_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert missing(tmp_path / name) == []
