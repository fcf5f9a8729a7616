"""The folders of the C++ runtime include one another as the table in runtime/README.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_RUNTIME = Path(__file__).parents[2] / "runtime"
_SOURCES = sorted(path for path in (_RUNTIME / "src").rglob("*") if path.suffix in {".cc", ".h"})
_ROW = re.compile(r"\| `([\w/]+)/` \|[^|]*\|([^|]*)\|")
_INCLUDE = re.compile(r'#include "([\w/]+)/[\w.]+"')

# Each folder of the table, lowest first, and those that its sources include.
_TABLE = {
    folder: set(re.findall(r"`([\w/]+)/`", included))
    for folder, included in _ROW.findall((_RUNTIME / "README.md").read_text(encoding="utf-8"))
}


def test_every_folder_stands_in_the_table_above_those_that_include_it() -> None:
    folders = {path.parent.relative_to(_RUNTIME / "src").as_posix() for path in _SOURCES}
    assert folders == {*_TABLE, "."}
    order = list(_TABLE)
    assert all(included <= set(order[: order.index(folder)]) for folder, included in _TABLE.items())


@pytest.mark.parametrize("folder", _TABLE)
def test_a_folder_includes_those_that_the_table_names(folder: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in _SOURCES if path.parent == _RUNTIME / "src" / folder]
    found = {name for source in sources for name in _INCLUDE.findall(source)}
    assert found - {folder, "sala"} == _TABLE[folder]
