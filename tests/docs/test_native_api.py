"""docs/c_api.md is what the headers say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.documents import ROOT

from scripts.native_api import PAGE, page

HEADER = ROOT / "runtime" / "include" / "sala.h"


def test_page_is_that_of_the_headers() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(ROOT), "run: python -m scripts.native_api"


def test_every_function_of_the_library_has_a_heading() -> None:
    functions = set(re.findall(r"^SALA_API .*?(sala_\w+)\(", HEADER.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(functions) > 30
    assert functions <= set(re.findall(r"^### `(\w+)`", page(ROOT), re.MULTILINE))


def test_every_cpp_header_has_a_row() -> None:
    for header in (ROOT / "runtime" / "include" / "sala").glob("*.h"):
        assert re.search(rf"^\| \[`sala/{header.name}`\]\([^)]*\) \| \w.*\. \|$", page(ROOT), re.MULTILINE)


@pytest.mark.parametrize("text", ["sala_session_stop", "SALA_LOAD_OPTIONS_INIT", "SALA_FINISH_MAX_CONTEXT = 3"])
def test_declarations_are_shown(text: str) -> None:
    assert text in page(ROOT)


def test_example_of_the_page_compiles(tmp_path: Path) -> None:
    example = re.findall(r"^```c\n(.*?)^```", page(ROOT), re.MULTILINE | re.DOTALL)[0]
    source = tmp_path / "example.c"
    source.write_text(f"#include <sala.h>\n#include <stdio.h>\nint main(void) {{\n{example}return 0;\n}}\n")
    subprocess.run(["cc", "-Wall", "-Werror", "-fsyntax-only", "-I", HEADER.parent, source], check=True)
