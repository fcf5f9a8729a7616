"""Documents name only what exists, and nothing of the machine or the registries that they were written with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import ROOT, Document, documents, forbidden_names

each_document = pytest.mark.parametrize(
    "document", [Document(path) for path in documents()], ids=lambda d: str(d.path.relative_to(ROOT))
)


@each_document
def test_links_lead_somewhere(document: Document) -> None:
    broken = []
    for link in document.links():
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        path = (document.path.parent / target).resolve() if target else document.path
        inside = path.is_relative_to(ROOT) and path.exists()
        if not inside or (fragment and fragment not in Document(path).anchors()):
            broken.append(link)
    assert broken == []


@each_document
def test_paths_in_code_exist(document: Document) -> None:
    assert [path for path in document.mentioned_paths() if not document.exists(path)] == []


@each_document
def test_no_machine_and_no_registry_is_named(document: Document) -> None:
    assert forbidden_names(document.text) == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/README.md", "docs/model.md"])
def test_documents_that_users_look_for_are_among_those_checked(name: str) -> None:
    assert ROOT / name in documents()


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md"))
def test_index_lists_every_page(name: str) -> None:
    assert name in Document(ROOT / "docs" / "README.md").links()


def _document(folder: Path, text: str) -> Document:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return Document(path)


@pytest.mark.parametrize(
    "text",
    [
        "see `sala_export/no_such_file.py`",
        "see `sala_export/{specs,no_such}.py`",
        "see `no_such_file.cc`",
        "in `docs/nowhere/`",
        "```\nplugins/no_such_folder/x.h   a file\n```",
    ],
)
def test_wrong_path_is_found(tmp_path: Path, text: str) -> None:
    document = _document(tmp_path, text)
    paths = list(document.mentioned_paths())
    assert len(paths) == 1
    assert not document.exists(paths[0])


@pytest.mark.parametrize(
    "text",
    [
        "`sala_export/specs.py`, `specs.py`, `plugins/common/operator.{h,cc}`",
        "`sala_export/ops/<op>/schema.py` and `plugins/aot/`",
        "```\ncommon/kernel.{h,cc}    loads\n```",
    ],
)
def test_right_path_is_found(tmp_path: Path, text: str) -> None:
    document = _document(tmp_path, text)
    paths = list(document.mentioned_paths())
    assert paths
    assert all(document.exists(path) for path in paths)


def test_paths_of_readers_and_bundles_are_left_alone(tmp_path: Path) -> None:
    document = _document(tmp_path, "`--gpu my.toml`, `graph/model.onnx`, `config.json`, `q/k/v`, `1 / sqrt(d)`")
    assert list(document.mentioned_paths()) == []


def test_anchor_of_a_heading_is_as_forges_make_it(tmp_path: Path) -> None:
    document = _document(tmp_path, "# The form, and why\n\n## Dense or sparse: `context_length`\n")
    assert document.anchors() == {"the-form-and-why", "dense-or-sparse-context_length"}


@pytest.mark.parametrize("text", ["pip install -i https://index.example.org/simple", "see /" + "home/me/checkout"])
def test_name_of_a_host_or_machine_is_found(text: str) -> None:
    assert len(forbidden_names(text)) == 1
