"""How `generate` ends early: what had run is saved if a state was asked for, and a line says where it stands."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export import loading
from sala_export.cli import generate_prompt, signals
from sala_export.cli.app import run
from sala_export.errors import RunError, SessionError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session, StateTarget
from sala_export.runtime.text import StreamDecoder

SIGNALS = [
    each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN
]
"""Those that end a program, unless whoever runs the tests has them ignored, as `nohup` does."""

Capture = pytest.CaptureFixture[str]

SENTENCE = "temig yemo tete re so se kige dudelu. "
"""About 14 tokens. The tiny model is dense up to 512."""


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


def ends(capsys: Capture, code: int, *arguments: object) -> list[str]:
    """Run until an early end; returns the lines on stderr that are not of progress."""
    capsys.readouterr()
    assert run(["generate", str(tiny_text_bundle()), "--runtime", "onnxruntime", *map(str, arguments)]) == code
    progress = ("loading weights", "runs on ", "prefill: ", "generated: ")
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith(progress)]


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes, block: int) -> None:
    monkeypatch.setattr(generate_prompt, "_BLOCK_BYTES", block)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("sentences", [3, 120], ids=["that waited", "that ran in chunks"])
def test_error_in_a_stream_saves_the_tokens_before_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model, sentences: int
) -> None:

    good = SENTENCE.encode() * sentences
    pipe(monkeypatch, good + b"\xc3\x28 rest", len(SENTENCE))
    state = tmp_path / "a.state"
    saved, error = ends(capsys, 2, "--prompt-file", "-", "--max-context", "4K", "--save-state", state)
    assert f"not UTF-8 at byte {len(good)}," in error
    restored = model.restore(state)
    assert f"saved the {restored.position:,} tokens that had run to {state}: continue with --load-state" in saved
    whole = model.session(max_context=4096)
    whole.prefill(good.decode())
    assert restored.tokens.tolist() == whole.tokens.tolist()


def test_stream_longer_than_the_context_saves_what_fitted(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model
) -> None:
    pipe(monkeypatch, SENTENCE.encode() * 100, 4 * len(SENTENCE))
    state = tmp_path / "a.state"
    saved, error = ends(capsys, 2, "--prompt-file", "-", "--max-context", 800, "--save-state", state)
    assert "max_context is 800: choose a larger --max-context" in error
    assert "saved the " in saved
    assert model.restore(state, max_context=4096).position == 800
    assert ends(capsys, 0, "--load-state", state, "--prompt", "on", "--max-context", "1K", "--max-new-tokens", 1) == []


def test_nothing_is_saved_or_run_without_a_place_for_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe(monkeypatch, SENTENCE.encode() * 120 + b"\xff", len(SENTENCE))
    monkeypatch.setattr(Session, "save", lambda *_: pytest.fail("saved"))
    (line,) = ends(capsys, 2, "--prompt-file", "-", "--max-context", "4K")
    assert "not UTF-8" in line


def test_session_that_cannot_be_saved_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise RunError("an earlier step of this session failed")

    state = tmp_path / "a.state"
    state.write_bytes(b"the last one")
    pipe(monkeypatch, SENTENCE.encode() * 120 + b"\xff", len(SENTENCE))
    monkeypatch.setattr(Session, "save", refuse)
    told, error = ends(capsys, 2, "--prompt-file", "-", "--max-context", "4K", "--save-state", state)
    assert told == f"what had run could not be saved to {state}: an earlier step of this session failed"
    assert "not UTF-8" in error
    assert state.read_bytes() == b"the last one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


def test_failure_while_generating_saves_the_prompt(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Session, "generate_tokens", fail)
    state = tmp_path / "a.state"
    saved, error = ends(capsys, 1, "--prompt", SENTENCE, "--max-context", "1K", "--save-state", state)
    assert "not enough memory" in error
    assert f"saved the {model.restore(state).position} tokens" in saved


BEFORE_THE_WEIGHTS: dict[str, tuple[list[str], str]] = {
    "temperature": (["--temperature", "nan"], "nan"),
    "infinite temperature": (["--temperature", "inf"], "inf"),
    "top-p": (["--top-p", "NaN"], "nan"),
    "penalty": (["--repetition-penalty", "1e-300"], "--repetition-penalty"),
    "min-p": (["--min-p", "1.5"], "--min-p"),
    "frequency-penalty": (["--frequency-penalty", "-2.1"], "--frequency-penalty"),
    "presence-penalty": (["--presence-penalty", "nan"], "nan"),
    "bias without a token": (["--logit-bias", "=1"], "--logit-bias"),
    "bias beyond the range": (["--logit-bias", "7=100.5"], "7=100.5"),
    "bias of one token twice": (["--logit-bias", "7=1", "--logit-bias", "07=2"], "token 7 is given twice"),
    "stop string of nothing": (["--stop", ""], "expected a text that is not empty"),
    "stop string too long": (["--stop", "a" * 1025], "1025 bytes"),
    "seed": (["--seed", str(2**64)], "--seed"),
    "top-k": (["--top-k", str(2**63)], "--top-k"),
    "max-new-tokens": (["--max-new-tokens", str(2**63)], "--max-new-tokens"),
    "max-context": (["--max-context", "4096G"], "--max-context"),
    "a million digits": (["--max-context", "9" * 100_000], "--max-context"),
    "state in no folder": (["--save-state", "none/a.state"], "none"),
    "state over a folder": (["--save-state", "."], "--save-state"),
    "state over a device": (["--save-state", "/dev/null"], "/dev/null"),
    "no state": (["--load-state", "none.state"], "none.state"),
    "state that is a device": (["--load-state", "/dev/zero"], "/dev/zero"),
    "prompt that is a device": (["--prompt-file", "/dev/zero"], "/dev/zero is a device"),
    "prompt that is a folder": (["--prompt-file", "/"], "--prompt-file /"),
}


@pytest.mark.parametrize("case", BEFORE_THE_WEIGHTS)
def test_what_can_be_known_is_refused_before_the_weights_are_loaded(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    arguments, word = BEFORE_THE_WEIGHTS[case]
    prompt = [] if "--prompt-file" in arguments else ["--prompt", "a"]
    (line,) = ends(capsys, 2, *prompt, *arguments)
    assert word in line
    assert list(tmp_path.iterdir()) == []


def test_chat_template_is_tried_before_the_weights_are_loaded(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SessionError("the chat template refuses the messages")

    monkeypatch.setattr("sala_export.runtime.chat.ChatTemplate.turn", refuse)
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded"))
    assert ends(capsys, 2, "--prompt", "a", "--chat") == ["error: the chat template refuses the messages"]


def test_room_for_the_state_is_looked_at_before_the_prefill(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Model, "state_bytes", lambda self, tokens: 1 << 60)
    monkeypatch.setattr(Session, "prefill", lambda *_, **__: pytest.fail("ran"))
    (line,) = ends(capsys, 2, "--prompt", "a", "--save-state", tmp_path / "a.state")
    assert str(tmp_path / "a.state") in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_the_work_between_steps_and_saves_it(
    tmp_path: Path, model: Model, number: signal.Signals, runtime: str
) -> None:
    state = tmp_path / "a.state"
    program = "from sala_export.cli.start import main; main()"
    options = ["--runtime", runtime, "--max-new-tokens", "100000", "--max-context", "120K", "--save-state", str(state)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "generate", str(tiny_text_bundle()), "--prompt", "muki", *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)  # it generates
    time.sleep(0.1)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    *_, saved, blank, error = told.decode().splitlines()
    assert (blank, error) == ("", "error: interrupted")
    restored = model.restore(state, max_context=4096)
    assert saved == (
        f"saved the {restored.position:,} tokens that had run to {state}: continue with --load-state {state}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


def test_signal_during_the_last_save_says_that_it_is_saved(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model
) -> None:
    save = Session.save

    def interrupted(session: Session, target: StateTarget) -> None:
        signals._interrupt(signal.SIGTERM, None)
        save(session, target)

    state = tmp_path / "a.state"
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(Session, "save", interrupted)
    saved, _, error = ends(
        capsys, 143, "--prompt", SENTENCE, "--max-context", "1K", "--max-new-tokens", 2, "--save-state", state
    )
    assert f"saved the {model.restore(state).position} tokens that had run to {state}" in saved
    assert error == "error: interrupted"


# What a child runs in place of a model's tokens: an answer larger than any pipe, and tokens without end or text.
LARGE = "Session.generate_tokens = lambda *_, **__: iter([5])\nStreamDecoder.push = lambda *_: 'x' * (1 << 21)"
SILENT = "Session.generate_tokens = silent"
PROGRAM = """
import os
from sala_export.cli.start import main
from sala_export.runtime.session import Session
from sala_export.runtime.text import StreamDecoder

def silent(*_, **__):
    os.write(1, b"it begins")
    while True:
        yield 0

{answer}
main()
"""


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        pytest.param(LARGE, [], id="nobody reads"),
        pytest.param(SILENT, [], id="no text"),
        pytest.param(SILENT, ["--json"], id="json at the end"),
    ],
)
def test_signal_ends_an_answer_that_waits_or_shows_nothing(
    tmp_path: Path, model: Model, answer: str, more: list[str]
) -> None:
    state = tmp_path / "a.state"
    command = ["generate", str(tiny_text_bundle()), "--runtime", "onnxruntime", "--prompt", "muki", "--max-context"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(answer=answer), *command, "1K", "--save-state", str(state), *more],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)  # it generates, and nobody reads the rest
    time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert f"saved the {model.restore(state, max_context=4096).position} tokens" in process.stderr.read().decode()


def test_text_on_a_terminal_cannot_command_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setattr(Session, "generate_tokens", lambda *_, **__: iter([5]))
    monkeypatch.setattr(StreamDecoder, "push", lambda *_: "a\x1b]0;owned\x07b\n")
    assert run(["generate", str(tiny_text_bundle()), "--prompt", "a", "--runtime", "onnxruntime"]) == 0
    assert capsys.readouterr().out == "a\x1b]0;owned\x07b\n\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(["generate", str(tiny_text_bundle()), "--prompt", "a", "--runtime", "onnxruntime"]) == 0
    assert capsys.readouterr().out == "a\\x1b]0;owned\\x07b\n\n"
