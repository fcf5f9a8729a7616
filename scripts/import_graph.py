"""Count the rooms of sala_export, the arrows between them and the floors they make.

    python scripts/import_graph.py             the counts
    python scripts/import_graph.py --arrows    and every arrow, floor by floor

A room is a module or package directly inside `sala_export`; an arrow is an import, at any depth, from one room into
another; a floor is one more than the longest way down. Imports for type checkers alone do not count.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import grimp

PACKAGE = "sala_export"


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports; the package's own `__init__` is no room."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    rooms = {module.split(".")[1] for module in graph.modules if module != PACKAGE}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for module in graph.modules - {PACKAGE}:
        for imported in graph.find_modules_directly_imported_by(module) - {PACKAGE}:
            start, end = module.split(".")[1], imported.split(".")[1]
            if start != end:
                found[start].add(end)
    return found


def floors(below: dict[str, set[str]]) -> dict[str, int]:
    """The floor of every room; the lowest is 1. Raises: RecursionError where imports run in a circle."""

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in below[room]), default=0)

    return {room: floor(room) for room in below}


def lines_of_python() -> int:
    """Of the package, comments and blank lines included."""
    files = Path(__file__).parents[1].joinpath(PACKAGE).rglob("*.py")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> None:
    below = arrows()
    height = floors(below)
    if "--arrows" in sys.argv[1:]:
        for room in sorted(below, key=lambda room: (-height[room], room)):
            print(
                f"{height[room]:2}  {room:16} {', '.join(sorted(below[room], key=lambda name: (-height[name], name)))}"
            )
    count = sum(map(len, below.values()))
    print(f"{len(below)} rooms, {count} arrows, {max(height.values())} floors, {lines_of_python()} lines of Python")


if __name__ == "__main__":
    main()
