"""`chat` as a program and as somebody at a terminal use it."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.runtime.model import Model, load_bundle
from sala_export.runtime.text import Tokenizer

Capture = pytest.CaptureFixture[str]

FEW = ("--max-new-tokens", "6", "--max-context", "1K", "--runtime", "onnxruntime")


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(Bundle.open(tiny_text_bundle()).text_files())


def chat(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, typed: str | bytes, *options: object, code: int = 0
) -> tuple[str, list[str]]:
    """Pipe messages into the command; returns what it prints, and the lines that it tells."""
    data = typed.encode() if isinstance(typed, str) else typed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    capsys.readouterr()
    assert run(["chat", str(tiny_text_bundle()), *FEW, *map(str, options)]) == code
    captured = capsys.readouterr()
    return captured.out, [line for line in captured.err.splitlines() if not line.startswith("loading weights")]


def state_ids(model: Model, path: Path) -> list[int]:
    return [int(token) for token in model.restore(path).tokens]


def test_each_line_is_a_message_that_is_answered(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model, tokenizer: Tokenizer
) -> None:
    assert tokenizer.chat is not None
    state = tmp_path / "a.state"
    first, _ = chat(capsys, monkeypatch, "muki sete", "--system", "Brief.")
    both, _ = chat(capsys, monkeypatch, "muki sete\n\nkiga\n", "--system", "Brief.", "--save-state", state)
    assert both.startswith(first)
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "muki sete"}]
    messages += [{"role": "assistant", "content": first.removesuffix("\n")}, {"role": "user", "content": "kiga"}]
    read = state_ids(model, state)[:-6]
    assert tokenizer.decode(read) == tokenizer.decode(
        tokenizer.encode(tokenizer.chat.render(messages), add_special_tokens=False)
    )


def test_first_answer_is_that_of_generate(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*FEW, "--temperature", "1.5", "--seed", "3", "--template-var", "unused=1", "--system", "Brief.")
    told = chat(capsys, monkeypatch, "muki\n", *options)
    assert run(["generate", str(tiny_text_bundle()), "--chat", "--prompt", "muki", *options]) == 0
    assert told[0] == capsys.readouterr().out
    assert "--template-var unused: the chat template reads no variable of this name" in told[1][0]


def test_commands_and_messages_of_several_lines(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model, tokenizer: Tokenizer
) -> None:
    assert tokenizer.chat is not None
    typed = '/help\n/nothing\nmuki\n/reset\n/system Be brief.\n"""/exit\nsete\n"""\n/exit\nnot read\n'
    out, told = chat(capsys, monkeypatch, typed, "--save-state", tmp_path / "a.state")
    for command in ("/system TEXT", "/reset", "/exit", '"""', "Ctrl-C", "there is no command /nothing"):
        assert sum(command in line for line in told) == 1
    assert len(out.rstrip("\n")) > 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "/exit\nsete"}]
    expected = tokenizer.encode(tokenizer.chat.render(messages), add_special_tokens=False)
    assert state_ids(model, tmp_path / "a.state")[: len(expected)] == expected


def test_conversation_without_messages_saves_an_empty_context(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model
) -> None:
    assert chat(capsys, monkeypatch, "", "--save-state", tmp_path / "a.state") == ("", [])
    assert state_ids(model, tmp_path / "a.state") == []


@pytest.mark.parametrize(
    ("typed", "options", "words"),
    [
        ("muki sete " * 900, (), "the context has room for 1,024: /reset begins a new one"),
        (b"ab\xff\n", (), "the message is not UTF-8 at byte 2"),
        ("muki", ("--chat-template", "rag"), "there is no chat template 'rag': its names are default"),
        ("muki", ("--template-var", "enable_thinking"), "is not NAME=VALUE"),
        ("muki", ("--template-var", "enable_thinking=False"), "write enable_thinking=false"),
        ("muki", ("--template-var", "messages=[]"), "messages is not for you to give"),
        ("muki", ("--temperature", "-1"), "--temperature"),
    ],
)
def test_error_from_a_pipe_ends_the_chat_in_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, typed: str | bytes, options: tuple[str, ...], words: str
) -> None:
    out, (line,) = chat(capsys, monkeypatch, typed, *options, code=2)
    assert out == ""
    assert line.startswith("error: ")
    assert words in line


def test_full_context_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = chat(capsys, monkeypatch, "muki", "--max-context", 32, "--max-new-tokens", 100)
    assert told == ["the context is full: /reset begins a new conversation, and a larger --max-context holds more"]


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, words: str) -> None:
        """Read until these words have come behind those that were waited for before."""
        ends = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < ends, self.text
            self.text += self._read()
        self.text = self.text.partition(words)[2]

    def ends(self) -> int:
        while piece := self._read():
            self.text += piece
        return self.process.wait(60)

    def interrupt(self, *, at_prompt: bool) -> None:
        """Press Ctrl-C. A prompt that was just written may not read yet, and would notice it with the next key."""
        time.sleep(0.5 if at_prompt else 0)
        self.process.send_signal(signal.SIGINT)

    def _read(self) -> str:
        ready, _, _ = select.select([self._descriptor], [], [], 60)
        assert ready, f"nothing comes behind {self.text!r}"
        try:
            return os.read(self._descriptor, 4096).decode("utf-8", "replace")
        except OSError:  # the program has left
            return ""


@contextmanager
def terminal(*options: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    program = "from sala_export.cli.start import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "chat", str(tiny_text_bundle()), "--runtime", "onnxruntime", *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="signals are ignored here")
def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    stops = {
        *load_bundle(tiny_text_bundle()).eos_token_ids,
        *Tokenizer.from_directory(tiny_checkpoint()).stop_token_ids,
    }
    endless = [word for stop in stops for word in ("--logit-bias", f"{stop}=-100")]
    with terminal("--max-new-tokens", "100000", "--max-context", "64K", *endless) as typed:
        typed.wait_for("Ctrl-D ends the chat")
        for message in ("muki", "sete"):
            typed.wait_for("> ")
            typed.type(f"{message}\n")
            typed.wait_for(f"{message}\r\n")
            typed.wait_for("e")  # it answers
            typed.interrupt(at_prompt=False)
        typed.wait_for("\n> ")
        typed.interrupt(at_prompt=True)
        typed.wait_for("so does a second Ctrl-C")
        typed.type("/exit\n")
        assert typed.ends() == 0


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="signals are ignored here")
def test_second_ctrl_c_at_the_prompt_ends_the_program() -> None:
    with terminal() as typed:
        for _ in range(2):
            typed.wait_for("> ")
            typed.interrupt(at_prompt=True)
        typed.wait_for("error: interrupted")
        assert typed.ends() == 130


def test_who_types_can_go_on_after_an_error_and_ends_with_ctrl_d() -> None:
    with terminal("--max-new-tokens", "4", "--max-context", "64") as typed:
        typed.wait_for("> ")
        typed.type("muki " * 60 + "\n")
        typed.wait_for("error: the conversation takes")
        typed.wait_for("> ")
        typed.type("muki\n")
        typed.wait_for("cut off after 4 tokens")
        typed.wait_for("> ")
        typed.type("\x04")
        assert typed.ends() == 0
