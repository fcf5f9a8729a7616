"""Source files have at most 500 lines, and functions of Python at most 60, except for kernels.

Signatures and docstrings do not count. A kernel is one function by nature.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
SUFFIXES = {".c", ".cc", ".css", ".h", ".html", ".js", ".py", ".sh"}
KERNEL_DECORATORS = {"any_size_kernel", "triton.jit"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> dict[str, str]:
    """Text of every source file that Git knows, by its path in the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if Path(name).suffix in SUFFIXES]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths if path.exists()}


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and lines of each function that is no kernel."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and not KERNEL_DECORATORS & set(map(ast.unparse, node.decorator_list)):
            yield node.name, body_lines(node)


def body_lines(node: Function) -> int:
    body = node.body if ast.get_docstring(node) is None else node.body[1:]
    end = node.end_lineno
    assert end is not None
    return end - body[0].lineno + 1 if body else 0


def test_no_source_file_is_longer_than_500_lines() -> None:
    found = {name: source.count("\n") for name, source in sources().items()}
    assert len(found) > 100
    assert {name: count for name, count in found.items() if count > MAX_FILE_LINES} == {}


def test_no_python_function_is_longer_than_60_lines() -> None:
    found = {
        f"{file}:{name}": count
        for file, source in sources().items()
        if file.endswith(".py")
        for name, count in functions(source)
    }
    assert len(found) > 1000
    assert {name: count for name, count in found.items() if count > MAX_FUNCTION_LINES} == {}
