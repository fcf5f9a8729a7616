"""`generate --chat`: the context is what the template writes for the real messages, wherever the prompt comes from."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import click
import pytest
from safetensors import safe_open
from support.chat_templates import CHATML, STRIPPED_THOUGHTS, THINKING, TOOL_CALLS, TURNS
from support.checkpoints import edit_json, tiny_checkpoint
from support.text_bundles import write_text_bundle

from sala_export import loading
from sala_export.bundle.reader import Bundle
from sala_export.cli import chat_options, generate_prompt
from sala_export.cli.app import run
from sala_export.runtime.chat import ChatTemplate
from sala_export.runtime.text import Tokenizer

Capture = pytest.CaptureFixture[str]

LOOKS = CHATML.replace(
    "message['content'] +", "message['content'] + ('' if message['content'].endswith('/fast') else '/slow') +"
)
PROMPT = "  muki sete,\n\u4f60\u597d and the rest /fast\n"


def checkpoint_with(folder: Path, template: object) -> Path:
    """The tiny checkpoint with another chat template."""
    copy = Path(shutil.copytree(tiny_checkpoint(), folder / "checkpoint"))
    edit_json(copy / "tokenizer_config.json", lambda fields: fields.update(chat_template=template))
    return copy


def chat_of(checkpoint: Path) -> tuple[Tokenizer, ChatTemplate]:
    tokenizer = Tokenizer.from_directory(checkpoint)
    assert tokenizer.chat is not None
    return tokenizer, tokenizer.chat


def generate(checkpoint: Path, *options: object, code: int = 0) -> None:
    arguments = ["generate", str(checkpoint), "--runtime", "torch", "--max-new-tokens", "0", *map(str, options)]
    assert run(arguments) == code


def ids_after(checkpoint: Path, folder: Path, *options: object) -> list[int]:
    """The context that a run leaves."""
    state = folder / "after.state"
    generate(checkpoint, *options, "--save-state", state)
    with safe_open(state, "np") as file:
        return [int(token) for token in file.get_tensor("token_ids")]


def refused(capsys: Capture, checkpoint: Path, *options: object) -> str:
    capsys.readouterr()
    generate(checkpoint, *options, code=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize("source", [LOOKS, THINKING], ids=["looks", "thinking"])
def test_context_is_what_the_template_writes_for_the_real_prompt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    checkpoint = checkpoint_with(tmp_path, source)
    tokenizer, template = chat_of(checkpoint)
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    pipe(monkeypatch, PROMPT)
    expected = tokenizer.encode(template.render([{"role": "user", "content": PROMPT}]), add_special_tokens=False)
    for given in (["--prompt", PROMPT], ["--prompt-file", tmp_path / "prompt.txt"], ["--prompt-file", "-"]):
        assert ids_after(checkpoint, tmp_path, "--chat", *given) == expected


def test_system_message_and_variables_reach_the_template(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, THINKING)
    tokenizer, template = chat_of(checkpoint)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "muki"}]
    tools = [{"name": "f", "parameters": {}}]
    text = template.render(messages, enable_thinking=False, tools=tools)
    options = ["--system", "Be brief.", "--template-var", "enable_thinking=false"]
    options += ["--template-var", f"tools={json.dumps(tools)}", "--prompt", "muki"]
    assert ids_after(checkpoint, tmp_path, "--chat", *options) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("false", False), ('"1"', "1"), ("26 Jul", "26 Jul"), ("", ""), ("NaN", "NaN"), ("a=b", "a=b")],
)
def test_variable_is_json_or_else_text(text: str, value: object) -> None:
    command = click.command()(chat_options.chat_options(lambda **options: options))
    options = command.main(["--template-var", f"x={text}", "--template-var", "y=1"], standalone_mode=False)
    assert options["template_var"] == (("x", value), ("y", 1))


@pytest.mark.parametrize(("source", "from_file"), [(THINKING, True), (TURNS, False)], ids=["as it is", "trimmed"])
def test_prompt_too_long_to_hold_gives_the_same_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, from_file: bool
) -> None:
    checkpoint = checkpoint_with(tmp_path, source)
    given = "-"
    if from_file:
        given = str(tmp_path / "prompt.txt")
        Path(given).write_text(PROMPT * 3, encoding="utf-8")
    options = ("--chat", "--prompt-file", given)
    pipe(monkeypatch, PROMPT * 3)
    whole = ids_after(checkpoint, tmp_path, *options)
    monkeypatch.setattr(chat_options, "MOST_HELD_BYTES", 8)
    monkeypatch.setattr(generate_prompt, "_BLOCK_BYTES", 5)
    monkeypatch.setattr(ChatTemplate, "turn", lambda *_, **__: pytest.fail("held the prompt"))
    pipe(monkeypatch, PROMPT * 3)
    assert ids_after(checkpoint, tmp_path, *options) == whole


def test_prompt_too_long_to_hold_is_refused_where_the_template_looks_at_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = checkpoint_with(tmp_path, LOOKS)
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    monkeypatch.setattr(chat_options, "MOST_HELD_BYTES", 8)
    words = "tokenizer_config.json: the chat template looks at the text of the prompt or changes it"
    pipe(monkeypatch, PROMPT)
    assert words in refused(capsys, checkpoint, "--chat", "--prompt-file", "-")
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded"))
    assert words in refused(capsys, checkpoint, "--chat", "--prompt-file", tmp_path / "prompt.txt")


def test_next_turn_of_a_state_follows_the_template(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = checkpoint_with(tmp_path, THINKING)
    tokenizer, template = chat_of(checkpoint)
    begun = ids_after(checkpoint, tmp_path, "--chat", "--prompt", "muki")
    state = (tmp_path / "after.state").rename(tmp_path / "begun.state")
    more = ["--chat", "--load-state", state, "--template-var", "enable_thinking=false"]
    expected = tokenizer.encode(template.turn("sete", goes_on=True, enable_thinking=False), add_special_tokens=False)
    capsys.readouterr()
    assert ids_after(checkpoint, tmp_path, *more, "--prompt", "sete") == [*begun, *expected]
    assert "warning: the chat template leaves out what the model thought" in capsys.readouterr().err
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded"))
    assert "--system begins a conversation" in refused(capsys, checkpoint, *more, "--prompt", "a", "--system", "b")


def test_state_does_not_go_on_where_the_template_needs_the_texts_before(capsys: Capture, tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, CHATML.replace("message['content']", "message['content'] ~ loop.index"))
    ids_after(checkpoint, tmp_path, "--chat", "--prompt", "muki")
    options = ("--chat", "--load-state", tmp_path / "after.state", "--prompt", "sete")
    assert "by the texts of those before it" in refused(capsys, checkpoint, *options)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "tokenizer_config.json: the chat template does not compile"),
        ("{{ raise_exception('not today') }}", "tokenizer_config.json: the chat template refuses the messages: not"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "computes for too long"),
        (
            [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}],
            "choose one of rag, tool_use with --chat-template",
        ),
        (None, "without a chat template"),
    ],
)
def test_bad_template_is_told_before_the_weights_and_keeps_nobody_from_text(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, template: object, words: str
) -> None:
    checkpoint = checkpoint_with(tmp_path, template)
    generate(checkpoint, "--prompt", "muki")
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded"))
    assert words in refused(capsys, checkpoint, "--chat", "--prompt", "muki")


def test_template_for_tools_is_chosen_by_tools(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, {"default": CHATML, "tool_use": THINKING})
    tokenizer, template = chat_of(checkpoint)
    tools = [{"name": "f"}]
    text = template.named("tool_use").render([{"role": "user", "content": "muki"}], tools=tools)
    options = ("--chat", "--template-var", f"tools={json.dumps(tools)}", "--prompt", "muki")
    assert ids_after(checkpoint, tmp_path, *options) == tokenizer.encode(text, add_special_tokens=False)


def test_template_is_chosen_by_its_name(capsys: Capture, tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, [{"name": "a", "template": CHATML}, {"name": "b", "template": TOOL_CALLS}])
    tokenizer, template = chat_of(checkpoint)
    for name in ("a", "b"):
        text = template.named(name).render([{"role": "user", "content": "muki"}])
        options = ("--chat", "--chat-template", name, "--prompt", "muki")
        assert ids_after(checkpoint, tmp_path, *options) == tokenizer.encode(text, add_special_tokens=False)
    assert "its names are a, b" in refused(capsys, checkpoint, "--chat", "--chat-template", "c", "--prompt", "a")


@pytest.mark.parametrize("option", [("--system", "a"), ("--template-var", "a=1"), ("--chat-template", "a")])
def test_option_of_the_template_needs_it(capsys: Capture, option: tuple[str, str]) -> None:
    assert f"{option[0]} is for the chat template: give --chat" in refused(
        capsys, tiny_checkpoint(), "--prompt", "a", *option
    )


def test_templates_with_names_come_into_the_bundle(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, "in the config")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text("named", encoding="utf-8")
    (checkpoint / "chat_template.jinja").write_text(STRIPPED_THOUGHTS, encoding="utf-8")
    bundle = write_text_bundle(checkpoint, tmp_path / "a.sala")
    for texts in (Tokenizer.from_files(Bundle.open(bundle).text_files()), Tokenizer.from_directory(checkpoint)):
        assert texts.chat is not None
        assert texts.chat.names == ("default", "rag") or texts.chat.names == ("rag", "default")
        assert texts.chat.named("rag").render([]) == "named"
        assert texts.chat.render([{"role": "user", "content": "a"}]) == "<s><User>a<Assistant><think>\n"
    Bundle.open(bundle).verify_hashes()
