"""The programs of examples/python, run as their first lines say, answer what the library answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import ROOT
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.runtime.model import Model

EXAMPLES = ROOT / "examples" / "python"
TEXT = "the river runs past the mill and the old mill stands by the river\n" * 40


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


def run(name: str, *arguments: object, text: str = "", directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=directory, input=text, capture_output=True, text=True, check=True)


def test_generate_samples_the_answer_of_its_seed(model: Model, tmp_path: Path) -> None:
    session = model.session()
    session.prefill("the mill")
    expected = "".join(session.generate(max_new_tokens=64, temperature=0.8, top_p=0.95, seed=1))
    assert run("generate", tiny_text_bundle(), "the mill", directory=tmp_path).stdout == f"{expected}\n"


def test_stream_answers_a_pipe_as_one_text(model: Model, tmp_path: Path) -> None:
    session = model.session()
    session.prefill(iter(TEXT.splitlines(keepends=True)))
    tokens = session.position
    expected = "".join(session.generate(max_new_tokens=64))
    done = run("stream", tiny_text_bundle(), text=TEXT, directory=tmp_path)
    assert done.stdout == f"{expected}\n"
    assert f"\n{tokens} tokens, " in done.stderr


def test_saved_text_is_read_once(model: Model, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    outputs = [run("save_restore", tiny_text_bundle(), "book.txt", "whose mill?", directory=tmp_path).stdout]
    written = (tmp_path / "book.txt.state").stat()
    outputs.append(run("save_restore", tiny_text_bundle(), "book.txt", "whose mill?", directory=tmp_path).stdout)
    assert (tmp_path / "book.txt.state").stat() == written
    session = model.session()
    session.prefill(TEXT)
    session.prefill("whose mill?")
    expected = "".join(session.generate(max_new_tokens=64))
    assert outputs == [f"> whose mill?\n{expected}\n"] * 2


def test_every_example_has_a_test_here() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"generate", "stream", "save_restore"}
