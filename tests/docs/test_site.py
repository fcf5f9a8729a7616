"""The documentation site builds without a warning, and what is wrong with a page ends its build."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.documents import ROOT

from scripts.build_site import build, write_pages

needs_generator = pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="no site generator")
HTML = ROOT / "build" / "site" / "html"


@pytest.fixture(scope="session")
def site() -> Path:
    """The site of this checkout, built by the command of docs/README.md."""
    command = [sys.executable, "-m", "scripts.build_site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return HTML


def test_menu_has_every_page() -> None:
    menu = str(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in menu] == []


@needs_generator
def test_site_has_every_page_and_links_between_them(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        name = "index.html" if page.name == "README.md" else f"{page.stem}.html"
        assert (site / "docs" / name).exists()
    embedding = (site / "docs" / "embedding.html").read_text(encoding="utf-8")
    assert 'href="../runtime/include/sala.h.html"' in embedding, "a source file is a page"
    assert (site / "runtime" / "include" / "sala.h.html").exists()
    assert 'class="mermaid"' in (site / "docs" / "tour.html").read_text(encoding="utf-8")


@needs_generator
def test_python_page_has_signatures_and_docstrings(site: Path) -> None:
    page = re.sub(r"<[^>]*>", "", (site / "docs" / "python_api.html").read_text(encoding="utf-8"))
    for name in ("sala_export.load", "sala_export.runtime.session.Session", "SalaForCausalLM", "BundleError"):
        assert name in page
    assert "Load a model to run it." in page
    assert ":::" not in page.partition("Loading")[2].split("sala_export.load")[0]


@needs_generator
def test_site_asks_no_other_host_for_fonts(site: Path) -> None:
    assert "fonts.googleapis" not in (site / "index.html").read_text(encoding="utf-8")


def _checkout(root: Path, text: str) -> Path:
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("# Start\n\nSee [the page](docs/page.md).\n", encoding="utf-8")
    (root / "docs" / "page.md").write_text(text, encoding="utf-8")
    (root / "lib.py").write_text("def known() -> None: ...\n", encoding="utf-8")
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    nav = re.compile(r"^nav = \[.*?^\]$", re.MULTILINE | re.DOTALL)
    assert len(nav.findall(config)) == 1
    (root / "zensical.toml").write_text(nav.sub('nav = ["README.md", "docs/page.md"]', config), encoding="utf-8")
    return root


@needs_generator
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("# Page\n\n::: lib.known\n\n[up](../README.md#start), [code](../lib.py)\n", 0),
        ("# Page\n\n[gone](gone.md)\n", 1),
        ("# Page\n\n[anchor](../README.md#gone)\n", 1),
        ("# Page\n\n::: lib.unknown\n", 1),
    ],
    ids=["all is well", "no page", "no anchor", "no name"],
)
def test_what_is_wrong_with_a_page_ends_the_build(tmp_path: Path, text: str, code: int) -> None:
    assert build(_checkout(tmp_path / "checkout", text)) == code


def test_links_of_a_page_lead_to_pages(tmp_path: Path) -> None:
    text = "[a](../lib.py) [b](../README.md#start) [c](..) `[d](../lib.py)` [e](https://host/x.py) [f](../folder)\n"
    root = _checkout(tmp_path / "checkout", text)
    (root / "folder").mkdir()
    (root / "folder" / "x.toml").touch()
    write_pages(root, tmp_path / "pages")
    told = (tmp_path / "pages" / "docs" / "page.md").read_text(encoding="utf-8")
    assert told == (
        "[a](../lib.py.md) [b](../README.md#start) [c](../README.md) `[d](../lib.py)` [e](https://host/x.py) "
        "[f](../folder/index.md)\n"
    )
    assert "def known()" in (tmp_path / "pages" / "lib.py.md").read_text(encoding="utf-8")
    assert "* `x.toml`" in (tmp_path / "pages" / "folder" / "index.md").read_text(encoding="utf-8")
