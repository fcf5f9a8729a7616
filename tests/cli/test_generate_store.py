"""`generate --state-store`: what was read before is not read again, and the answers are the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.cli.app import run
from sala_export.errors import RunError, StateError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.runtime.state_store import StateStore

Capture = pytest.CaptureFixture[str]

BOOK = "temig yemo tete re so se kige dudelu. " * 60
"""More than the 512 tokens up to which the tiny model is dense."""
QUESTIONS = ("muki sete?", "\n dudelu kiga")


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


def generate(capsys: Capture, *arguments: object) -> tuple[str, int, int, str]:
    """The answer of a successful run, the tokens that were there and those that were read, and stderr."""
    capsys.readouterr()
    options = ("--max-new-tokens", "8", "--max-context", "4K", *map(str, arguments))
    assert run(["generate", str(tiny_text_bundle()), "--runtime", "onnxruntime", *options]) == 0
    printed = capsys.readouterr()
    found = re.search(r"state store: ([\d,]+) of [\d,]+ tokens of the prompt are there, ([\d,]+) are read", printed.err)
    there, read = (int(each.replace(",", "")) for each in found.groups()) if found else (-1, -1)
    return printed.out, there, read, printed.err


@pytest.mark.parametrize("chat", [(), ("--chat",)], ids=["plain", "chat"])
def test_a_book_is_read_once_for_all_questions(capsys: Capture, tmp_path: Path, book: Path, chat: tuple[str]) -> None:
    for number, question in enumerate(QUESTIONS):
        expected, *_ = generate(capsys, "--prompt-file", book, "--prompt", question, *chat)
        options = ("--prompt-file", book, "--prompt", question, *chat, "--state-store", tmp_path / "states")
        answer, there, read, _ = generate(capsys, *options)
        assert answer == expected
        assert there + read > 600
        if number:
            assert there > 600, "all of the book"
            assert read < 40
        else:
            assert there == 0
        answer, there, read, log = generate(capsys, *options)
        assert (answer, read) == (expected, 0)
        assert "prefill:" not in log


def test_a_prompt_alone_is_there_the_second_time(capsys: Capture, tmp_path: Path, book: Path) -> None:
    store = ("--state-store", tmp_path / "states")
    expected, *_ = generate(capsys, "--prompt", "muki sete")
    assert generate(capsys, "--prompt", "muki sete", *store)[:2] == (expected, 0)
    answer, there, read, _ = generate(capsys, "--prompt", "muki sete", *store)
    assert (answer, read) == (expected, 0)
    assert there > 0
    generate(capsys, "--prompt-file", book, *store)
    assert generate(capsys, "--prompt-file", book, *store)[2] == 0


def test_file_and_prompt_are_one_text(capsys: Capture, book: Path) -> None:
    expected, *_ = generate(capsys, "--prompt", f"{BOOK}\nmuki sete")
    assert generate(capsys, "--prompt-file", book, "--prompt", "muki sete")[0] == expected
    book.write_text("", encoding="utf-8")
    expected, *_ = generate(capsys, "--prompt", "\nmuki sete")
    assert generate(capsys, "--prompt-file", book, "--prompt", "muki sete")[0] == expected


def test_what_had_run_before_an_early_end_is_there(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, book: Path
) -> None:
    prefill = Session.prefill

    def stop_early(self: Session, prompt: object, **options: object) -> None:
        prefill(self, prompt[:600])  # type: ignore[index, call-overload]
        raise RunError("the power went")

    options = ["--prompt-file", str(book), "--state-store", str(tmp_path / "states")]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "prefill", stop_early)
        assert run(["generate", str(tiny_text_bundle()), "--runtime", "onnxruntime", *options]) == 1
    assert generate(capsys, *options)[1] == 600


def test_a_store_that_is_full_keeps_no_answer_back(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("No space left on device")

    expected, *_ = generate(capsys, "--prompt", "muki sete")
    monkeypatch.setattr(StateStore, "save", refuse)
    answer, _, _, log = generate(capsys, "--prompt", "muki sete", "--state-store", tmp_path / "states")
    assert answer == expected
    assert "warning: the prompt could not be saved to the state store: No space left on device" in log


def test_it_goes_with_save_state_and_json(capsys: Capture, tmp_path: Path, book: Path, model: Model) -> None:
    options = ("--prompt-file", book, "--state-store", tmp_path / "states", "--save-state", tmp_path / "a.state")
    texts = []
    for _ in range(2):
        found = json.loads(generate(capsys, *options, "--json")[0])
        texts.append(found["text"])
        state = model.restore(tmp_path / "a.state", max_context=4096)
        assert state.position == found["prompt_tokens"] + len(found["tokens"])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state-store", "states", "--load-state", "a.state"], "leave --load-state out"),
        (["--state-store-bytes", "1G"], "give --state-store DIR, too"),
        (["--state-store", "no/such/folder"], "--state-store no/such/folder cannot be used: No such file or directory"),
        (["--state-store", "states", "--state-store-bytes", "lots"], "'lots' is not a size in bytes"),
    ],
)
def test_wrong_options_are_refused(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.state").touch()
    assert run(["generate", str(tiny_text_bundle()), "--prompt", "muki", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


def test_bytes_that_are_no_text_are_refused_behind_a_file(capsys: Capture, book: Path) -> None:
    assert run(["generate", str(tiny_text_bundle()), "--prompt-file", str(book), "--prompt", "a\udcff"]) == 2
    assert "--prompt is not UTF-8 text" in capsys.readouterr().err
