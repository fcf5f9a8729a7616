"""What the pages tell readers to type is typed here, in a folder with a tiny model under the names of the pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.documents import ROOT
from support.page_commands import (
    NOT_RUN,
    QUICKLY,
    SNIPPETS_NOT_RUN,
    TESTED_ELSEWHERE,
    commands,
    link,
    make_workshop,
    pages_with_commands,
    run,
    snippets,
    why_no_snippet,
    why_not_run,
)

PAGES = pages_with_commands()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_snippets_of_a_page_run(page: Path, workshop: Path, tmp_path: Path) -> None:
    folder = link(workshop, tmp_path / "folder")
    for command in commands(page):
        if why_not_run(command) is None:
            run(command, folder)
    for number, snippet in enumerate(snippets(page)):
        if why_no_snippet(snippet) is None:
            (folder / f"snippet{number}.py").write_text(snippet, encoding="utf-8")
            run(f"python snippet{number}.py", folder)


@pytest.mark.parametrize("start", NOT_RUN)
def test_every_exception_is_needed(start: str) -> None:
    assert any(command.startswith(start) for page in PAGES for command in commands(page))


@pytest.mark.parametrize("part", SNIPPETS_NOT_RUN)
def test_every_exception_of_a_snippet_is_needed(part: str) -> None:
    assert any(part in snippet for page in PAGES for snippet in snippets(page))


@pytest.mark.parametrize("start", QUICKLY)
def test_every_quicker_command_is_needed(start: str) -> None:
    assert any(command.startswith(start) for page in PAGES for command in commands(page))


@pytest.mark.parametrize(("page", "test"), TESTED_ELSEWHERE.items())
def test_page_that_is_tested_elsewhere_is_there(page: str, test: str) -> None:
    assert (ROOT / page).exists()
    assert (ROOT / test).exists()


def test_commands_are_found_as_a_reader_would_type_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\nsala-export plan --gpu rtx   # what fits\n\na --> b\n```\n"
        "```sh\ndocker run \\\n    image\n```\n```c\nsala-export no\n```\n```python\nimport this\n```\n",
        encoding="utf-8",
    )
    assert commands(page) == ["sala-export plan --gpu rtx", "docker run image"]
    assert snippets(page) == ["import this\n"]


def test_command_that_fails_is_shown_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"sala-export inspect nowhere\.sala\n.*nowhere\.sala"):
        run("sala-export inspect nowhere.sala", tmp_path)
