"""`generate` as a user runs it, next to the same through the library."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.checkpoints import edit_json, tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.bundle.hashing import hash_files
from sala_export.bundle.reader import Bundle
from sala_export.cli import generate_prompt
from sala_export.cli.app import run
from sala_export.cli.generate_display import PrefillDisplay
from sala_export.cli.output import JSON_SCHEMA_VERSION
from sala_export.engine import host
from sala_export.progress import silent
from sala_export.runtime.model import Model
from sala_export.runtime.session import PrefillProgress
from sala_export.runtime.text import Tokenizer

Capture = pytest.CaptureFixture[str]

SHORT = "dudelu kiga muki sete, 你好 and the rest"
LONG = "temig yemo tete re so se kige dudelu. " * 60
"""More than the 512 tokens up to which the tiny model is dense."""
FEW = ("--max-new-tokens", "12", "--max-context", "4K")


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(Bundle.open(tiny_text_bundle()).text_files())


def generate(capsys: Capture, *arguments: str) -> str:
    """What a successful run prints."""
    capsys.readouterr()
    assert run(["generate", str(tiny_text_bundle()), *arguments]) == 0
    return capsys.readouterr().out


def answer(model: Model, *prompts: list[int]) -> str:
    """What the library generates after prompts one after the other."""
    session = model.session(max_context=4096)
    for ids in prompts:
        session.prefill(ids)
    return "".join(session.generate(max_new_tokens=12)) + "\n"


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["dense", "sparse"])
def test_prompt_gives_the_same_answer_as_text_file_and_pipe(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model, tokenizer: Tokenizer, prompt: str
) -> None:
    expected = answer(model, tokenizer.encode(prompt))
    assert len(expected) > 5
    assert generate(capsys, "--prompt", prompt, *FEW) == expected
    (tmp_path / "prompt.txt").write_text(prompt, encoding="utf-8")
    assert generate(capsys, "--prompt-file", str(tmp_path / "prompt.txt"), *FEW) == expected
    pipe(monkeypatch, prompt.encode())
    assert generate(capsys, "--prompt-file", "-", *FEW) == expected


def test_torch_runtime_gives_the_same_answer_from_bundle_and_checkpoint(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, model: Model, tokenizer: Tokenizer
) -> None:
    # In fp32, as on the other runtime, which is what the CPU takes.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = answer(model, tokenizer.encode(SHORT))
    for source in (tiny_text_bundle(), tiny_checkpoint()):
        assert run(["generate", str(source), "--prompt", SHORT, *FEW, "--runtime", "torch"]) == 0
        assert capsys.readouterr().out == expected


def test_sampling_options_reach_the_sampler(capsys: Capture, model: Model, tokenizer: Tokenizer) -> None:
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.3, "seed": 5}
    session = model.session(max_context=4096)
    session.prefill(tokenizer.encode(SHORT))
    expected = "".join(session.generate(max_new_tokens=12, **options)) + "\n"
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert generate(capsys, "--prompt", SHORT, *FEW, *flags) == expected
    assert generate(capsys, "--prompt", SHORT, *FEW, *flags, "--seed", "6") != expected


@pytest.mark.parametrize("count", [0, 12])
def test_json_has_text_tokens_and_why_it_ended(capsys: Capture, model: Model, tokenizer: Tokenizer, count: int) -> None:
    session = model.session(max_context=4096)
    ids = tokenizer.encode(SHORT)
    session.prefill(ids)
    tokens = list(session.generate_tokens(max_new_tokens=count))
    text = answer(model, ids).removesuffix("\n") if count else ""
    found = json.loads(
        generate(capsys, "--prompt", SHORT, "--max-context", "4K", f"--max-new-tokens={count}", "--json")
    )
    assert found.pop("generate_seconds") >= 0
    assert found == {
        "schema_version": JSON_SCHEMA_VERSION,
        "prompt_tokens": len(ids),
        "text": text,
        "tokens": tokens,
        "finish_reason": "max_new_tokens",
    }
    assert len(tokens) == count


def test_json_of_a_conversation_counts_what_was_there_and_ends_before_a_stop_string(
    capsys: Capture, tmp_path: Path, model: Model, tokenizer: Tokenizer
) -> None:
    state = str(tmp_path / "read.state")
    generate(capsys, "--prompt", LONG, "--save-state", state, "--max-new-tokens", "0")
    ids = [tokenizer.encode(LONG), tokenizer.encode(SHORT, add_special_tokens=False)]
    whole = answer(model, *ids)
    stop = whole[len(whole) // 2 :].rstrip()[:3]
    found = json.loads(generate(capsys, "--load-state", state, "--prompt", SHORT, *FEW, "--stop", stop, "--json"))
    assert found["prompt_tokens"] == sum(map(len, ids))
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop_string"
    assert 0 < len(found["tokens"]) <= 12


def test_saved_state_goes_on_where_it_was(capsys: Capture, tmp_path: Path, model: Model, tokenizer: Tokenizer) -> None:
    state = str(tmp_path / "read.state")
    assert generate(capsys, "--prompt", LONG, "--save-state", state, "--max-new-tokens", "0") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["read.state"]
    expected = answer(model, tokenizer.encode(LONG), tokenizer.encode(SHORT, add_special_tokens=False))
    assert generate(capsys, "--load-state", state, "--prompt", SHORT, *FEW) == expected


def test_chat_wraps_the_prompt_also_when_it_is_streamed(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, model: Model, tokenizer: Tokenizer
) -> None:
    text = f"<s><|im_start|>user\n{LONG}<|im_end|>\n<|im_start|>assistant\n"
    expected = answer(model, tokenizer.encode(text, add_special_tokens=False))
    assert generate(capsys, "--chat", "--prompt", LONG, *FEW) == expected
    pipe(monkeypatch, LONG.encode())
    assert generate(capsys, "--chat", "--prompt-file", "-", *FEW) == expected


def test_next_turn_of_a_chat_ends_the_answer_before(
    capsys: Capture, tmp_path: Path, model: Model, tokenizer: Tokenizer
) -> None:
    state = tmp_path / "chat.state"
    generate(capsys, "--chat", "--prompt", LONG, *FEW, "--save-state", str(state))
    before = model.restore(state).tokens.tolist()
    turn = f"<|im_end|>\n<|im_start|>user\n{SHORT}<|im_end|>\n<|im_start|>assistant\n"
    end, *rest = tokenizer.encode(turn, add_special_tokens=False)
    assert before[-1] != end
    following = tmp_path / "next.state"
    arguments = ("--chat", "--prompt", SHORT, "--max-new-tokens", "0", "--save-state", str(following))
    generate(capsys, "--load-state", str(state), *arguments)
    assert model.restore(following).tokens.tolist() == [*before, end, *rest]

    # Where the model ended its answer itself, the token is there already.
    ended = model.restore(state)
    ended.prefill([end])
    ended.save(tmp_path / "ended.state")
    generate(capsys, "--load-state", str(tmp_path / "ended.state"), *arguments)
    assert model.restore(following).tokens.tolist() == [*before, end, *rest]


def without_tokenizer(_: Path) -> Path:
    return tiny_cpu_bundle()


def without_template(folder: Path) -> Path:
    bundle = Path(shutil.copytree(tiny_text_bundle(), folder / "bundle.sala"))
    config = bundle / "text" / "tokenizer_config.json"
    edit_json(config, lambda fields: fields.pop("chat_template"))
    (listed,) = hash_files(bundle, [config], silent)
    edit_json(
        bundle / "bundle.json",
        lambda fields: [entry.update(asdict(listed)) for entry in fields["files"] if entry["path"] == listed.path],
    )
    return bundle


BAD: dict[str, tuple[list[str], list[str]]] = {
    "no prompt": ([], ["--prompt TEXT", "--prompt-file FILE"]),
    "empty prompt": (["--prompt", ""], ["prompt is empty"]),
    "empty chat prompt": (["--prompt", "", "--chat"], ["prompt is empty"]),
    "empty pipe": (["--prompt-file", "-"], ["prompt is empty"]),
    "empty pipe and prompt": (["--prompt-file", "-", "--prompt", ""], ["prompt is empty"]),
    "missing file": (["--prompt-file", "missing.txt"], ["--prompt-file missing.txt", "No such file"]),
    "directory": (["--prompt-file", "."], ["--prompt-file .", "directory"]),
    "prompt longer than the context": (["--prompt", SHORT, "--max-context", "8"], ["max_context", "8"]),
    "missing state": (["--prompt", "a", "--load-state", "missing.state"], ["missing.state"]),
    "no place for the state": (["--prompt", "a", "--save-state", "missing/a.state"], ["--save-state", "missing"]),
    "unknown runtime": (["--prompt", "a", "--runtime", "gpu"], ["--runtime", "gpu", "onnxruntime"]),
    "not a size": (["--prompt", "a", "--max-context", "64Q"], ["--max-context", "64Q"]),
    "temperature below zero": (["--prompt", "a", "--temperature", "-1"], ["--temperature", "-1"]),
    "top-p above one": (["--prompt", "a", "--top-p", "1.5"], ["--top-p", "1.5"]),
}


def test_context_that_the_memory_cannot_hold_is_refused(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_host_bytes", lambda: 1 << 24)
    for command in (["generate", "--prompt", "a"], ["chat"]):
        assert run([command[0], str(tiny_text_bundle()), *command[1:], "--max-context", "64K"]) == 2
        assert "--max-context 64K needs " in capsys.readouterr().err
        pipe(monkeypatch, b"")
        assert run([command[0], str(tiny_text_bundle()), *command[1:], "--max-context", "64"]) == 0


def test_checkpoint_is_told_from_a_bundle(capsys: Capture) -> None:
    assert run(["generate", str(tiny_checkpoint()), "--prompt", "a"]) == 2
    assert "is a checkpoint: choose --runtime torch, or build a bundle of it" in capsys.readouterr().err


def fails(capsys: Capture, bundle: Path, *arguments: str) -> str:
    """Run, expect exit code 2; returns the one line on stderr."""
    capsys.readouterr()
    assert run(["generate", str(bundle), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # A slow load of the weights reports before.
    (line,) = (line for line in captured.err.splitlines() if not line.startswith(("loading weights", "runs on ")))
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    arguments, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    pipe(monkeypatch, b"")
    line = fails(capsys, tiny_text_bundle(), *arguments)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [(), ("--chat",)])
@pytest.mark.parametrize("start", [b"abc", LONG.encode() * 5], ids=["at once", "after chunks that ran"])
def test_invalid_utf8_on_the_pipe_is_named_by_offset(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, start: bytes, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(generate_prompt, "_BLOCK_BYTES", 4500)
    pipe(monkeypatch, start + b"\xe4\xbd\xff and more")
    line = fails(capsys, tiny_text_bundle(), "--prompt-file", "-", *flags)
    assert f"not UTF-8 at byte {len(start)}," in line


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [(without_tokenizer, (), "has no tokenizer"), (without_template, ("--chat",), "without a chat template")],
)
def test_bundle_that_lacks_text_files_says_so(
    capsys: Capture, tmp_path: Path, make: Callable[[Path], Path], flags: tuple[str, ...], words: str
) -> None:
    assert words in fails(capsys, make(tmp_path), "--prompt", "a", *flags)


def test_state_of_another_model_is_refused(capsys: Capture, tmp_path: Path) -> None:
    state = str(tmp_path / "a.state")
    generate(capsys, "--prompt", SHORT, "--max-new-tokens", "0", "--save-state", state)
    other = Path(shutil.copytree(tiny_text_bundle(), tmp_path / "other.sala"))
    edit_json(other / "bundle.json", lambda fields: fields["model"].update(fingerprint="0" * 64))
    assert state in fails(capsys, other, "--prompt", "a", "--load-state", state)


def test_help_names_every_option_in_kebab_case(capsys: Capture) -> None:
    text = generate(capsys, "--help")
    options = {word.strip(",") for word in text.split() if word.startswith("--")}
    assert {"--prompt", "--prompt-file", "--max-new-tokens", "--save-state", "--load-state", "--runtime"} <= options
    assert all(option == option.lower() and "_" not in option for option in options)


@pytest.mark.parametrize(
    ("total", "expected", "words"),
    [
        (4096, None, "1,024 of 4,096 tokens, 512 tokens/s, 6 s left"),
        (None, 3072.0, "1,024 tokens, 512 tokens/s, 4 s left"),
        (None, None, "1,024 tokens, 512 tokens/s"),
    ],
)
def test_progress_tells_tokens_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, total: int | None, expected: float | None, words: str
) -> None:
    monkeypatch.setattr(PrefillDisplay, "INTERVAL_S", 0.0)
    written = io.StringIO()
    with PrefillDisplay(Console(file=written), lambda: expected) as display:
        display(PrefillProgress(tokens_done=1024, tokens_total=total, seconds=2.0))
    assert written.getvalue() == f"prefill: {words}\nprefill: 1,024 tokens in 2.0 s, 512 tokens/s\n"


def test_progress_on_a_terminal_is_a_bar_that_goes_away() -> None:
    written = io.StringIO()
    with PrefillDisplay(
        Console(file=written, force_terminal=True, width=120, highlight=False), lambda: None
    ) as display:
        display(PrefillProgress(tokens_done=1024, tokens_total=4096, seconds=2.0))
    text = written.getvalue()
    assert "1,024 of 4,096 tokens, 512 tokens/s, 6 s left" in text
    assert text.endswith("prefill: 1,024 tokens in 2.0 s, 512 tokens/s\n")


def test_totals_go_to_stderr(capsys: Capture) -> None:
    capsys.readouterr()
    assert run(["generate", str(tiny_text_bundle()), "--prompt", SHORT, *FEW]) == 0
    captured = capsys.readouterr()
    prefill, runs_on, generated = captured.err.splitlines()
    assert runs_on.startswith("runs on ONNX Runtime on the CPU, ")
    assert prefill.startswith("prefill: ")
    assert generated.startswith("generated: 12 tokens, ")
    assert generated.endswith("ended by max-new-tokens")
    assert captured.out.strip()
