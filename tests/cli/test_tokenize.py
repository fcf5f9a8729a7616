"""`tokenize` and `detokenize` on a small checkpoint, without its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.token_places import base, vocabulary_size, write

from sala_export.runtime.text import Tokenizer

TEMPLATE = "<|im_start|>{{ messages[0].content }}<|im_end|>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = base("byte level")
    first = vocabulary_size(files)
    markers = {"<|im_start|>": first, "<|im_end|>": first + 1}
    files |= {"added_tokens": markers, "special_tokens_map": {"extra_special_tokens": list(markers)}}
    return write(files | {"tokenizer_config": {"chat_template": TEMPLATE}}, tmp_path_factory.mktemp("text") / "model")


def run(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from sala_export.cli.start import main; main()", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=False)


def ids(*arguments: object, given: bytes = b"") -> list[int]:
    done = run("tokenize", *arguments, given=given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n")
    return [int(word) for word in done.stdout.split()]


def test_ids_are_those_of_the_tokenizer(model: Path, tmp_path: Path) -> None:
    tokenizer, prompt = Tokenizer.from_directory(model), "The fox é <|im_end|> can't"
    (tmp_path / "prompt.txt").write_text(prompt, encoding="utf-8")
    assert ids(model, "--prompt", prompt) == tokenizer.encode(prompt)
    assert ids(model, given=prompt.encode()) == tokenizer.encode(prompt)
    assert ids(model, "--prompt-file", tmp_path / "prompt.txt") == tokenizer.encode(prompt)
    bare = tokenizer.encode(prompt, add_special_tokens=False)
    assert ids(model, "--no-add-special-tokens", "--prompt", prompt) == bare
    assert ids(model, "--literal", "--prompt", prompt) == tokenizer.encode(prompt, literal=True)


def test_literal_prompt_cannot_end_its_turn(model: Path) -> None:
    tokenizer = Tokenizer.from_directory(model)
    prompt = "a<|im_end|><|im_start|>b"
    begin, end = (tokenizer.encode(marker, add_special_tokens=False)[0] for marker in ("<|im_start|>", "<|im_end|>"))
    literal = ids(model, "--chat", "--literal", "--prompt", prompt)
    inside = tokenizer.encode(prompt, add_special_tokens=False, literal=True)
    assert literal == [begin, *inside, end]
    assert ids(model, "--chat", "--prompt", prompt).count(end) == 2


@pytest.mark.parametrize("keep", [True, False])
def test_text_comes_back(model: Path, keep: bool) -> None:
    prompt = "The fox\n é 🙂 <|im_end|>can't"
    given = run("tokenize", model, "--prompt", prompt).stdout.replace(b" ", b"\n", 1)
    done = run("detokenize", model, *["--keep-special-tokens"] * keep, given=given)
    assert done.stdout.decode() == (f"<s>{prompt}" if keep else prompt.replace("<|im_end|>", ""))


def test_text_is_written_as_soon_as_it_is_certain(model: Path) -> None:
    words = [str(token).encode() for token in Tokenizer.from_directory(model).encode("the fox can", literal=True)]
    command = [sys.executable, "-c", "from sala_export.cli.start import main; main()", "detokenize", str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b" ".join(words[:2]) + b" ")
        assert b"the".startswith(process.stdout.read(1))
        process.stdin.write(b" ".join(words[2:]))
        process.stdin.close()
        assert process.stdout.read().endswith(b" can")


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        (["tokenize"], b"", "empty"),
        (["tokenize"], b"ab\xff", "not UTF-8 at byte 2"),
        (["tokenize", "--prompt", "a", "--prompt-file", "b"], b"", "either"),
        (["detokenize"], b"", "the list of token ids is empty"),
        (["detokenize"], b"1 x 3", "token 1, counted from 0, is 'x'"),
        (["detokenize"], b"2147483648", "expected a decimal id"),
        (["detokenize"], b"-1", "expected a decimal id"),
    ],
)
def test_wrong_input_is_one_line(model: Path, arguments: list[str], given: bytes, words: str) -> None:
    done = run(arguments[0], model, *arguments[1:], given=given)
    assert done.returncode == 2
    message = done.stderr.decode()
    assert words in message
    assert message.count("\n") == 1


def test_nothing_heavy_is_imported(model: Path) -> None:
    code = (
        "import sys; from sala_export.cli.start import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "tokenize", str(model), "--prompt", "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "transformers", "numpy.testing"} & set(done.stderr.split())


def test_generate_takes_literal_prompts(tmp_path: Path) -> None:
    run("random-checkpoint", tmp_path / "tiny", "--preset", "tiny")
    tokenizer = Tokenizer.from_directory(tmp_path / "tiny")
    prompt = "Hi<|im_end|>"
    command = ["generate", tmp_path / "tiny", "--runtime", "torch", "--max-new-tokens", "1", "--prompt", prompt]
    literal, special = tokenizer.encode(prompt, literal=True), tokenizer.encode(prompt)
    template = tokenizer.encode(tokenizer.chat.turn("", goes_on=False), add_special_tokens=False)  # type: ignore[union-attr]
    for options, tokens in (
        ([], len(special)),
        (["--literal"], len(literal)),
        (["--chat", "--literal"], len(template) + len(literal) - 1),
    ):
        done = run(*command, *options)
        assert f"prefill: {tokens} tokens" in done.stderr.decode()


def test_token_without_a_row_is_refused_in_a_prompt(tmp_path: Path) -> None:
    run("random-checkpoint", tmp_path / "tiny", "--preset", "tiny")
    (tmp_path / "tiny" / "added_tokens.json").write_text(json.dumps({"<new>": 512}), encoding="utf-8")
    command = ["generate", tmp_path / "tiny", "--runtime", "torch", "--max-new-tokens", "1", "--prompt"]
    assert run(*command, "Hi <ne> you").returncode == 0
    refused = run(*command, "Hi <new> you")
    assert refused.returncode == 2
    assert b"is 512, expected 0 to 511" in refused.stderr
