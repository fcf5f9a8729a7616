"""One name, one thing: what readers of the package look up by name is there once."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import sala_export
from sala_export.installation import VERSION

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sala_export"


def parsed() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package: its path and its tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def test_no_public_class_name_is_given_twice() -> None:
    found = defaultdict(list)
    for path, tree in parsed():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path)
    assert len(found) > 100
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_module_imports_the_package_that_holds_it() -> None:
    """`import sala_export` in a module would tie it to all that the package offers; `installation` has the version."""
    rooms = {path.stem for path in PACKAGE.iterdir()}
    found = []
    for path, tree in parsed():
        depth = path.count("/")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(name.name.split(".")[0] == "sala_export" for name in node.names):
                found.append(path)
            if isinstance(node, ast.ImportFrom) and node.module is None and node.level == depth:
                found += [path for name in node.names if name.name not in rooms]
    assert found == []


def test_every_logger_is_called_logger() -> None:
    lines = [
        (path.name, line)
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "getLogger(__name__)" in line
    ]
    assert lines
    assert {line for _, line in lines} == {"logger = logging.getLogger(__name__)"}


def test_version_stands_in_one_file() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert sala_export.__version__ == VERSION
    retold = []
    for name in ("pyproject.toml", "CMakeLists.txt", "runtime/CMakeLists.txt", "examples/CMakeLists.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        retold += [name] if re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])", text) else []
    assert retold == []
