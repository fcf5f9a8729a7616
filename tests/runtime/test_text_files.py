"""Text files of a bundle that are wrong: each is refused in one line that names the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support.tokenizer_files import byte_level, sentencepiece

from sala_export.checkpoint.library_tokenizer import LibraryTokenizer, hidden_panics
from sala_export.errors import BundleError, SalaError, SessionError, printable
from sala_export.files import TextFile
from sala_export.runtime.text import Tokenizer
from sala_export.runtime.text_cuts import cut_rule

CONFIG, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"


def text_files(**contents: bytes) -> dict[str, TextFile]:
    """A tokenizer and further files, whose names are given with _ for the dot."""
    named = {"tokenizer.json": json.dumps(byte_level()).encode()}
    named |= {
        f"{stem}.{ending}": text for (stem, _, ending), text in ((n.rpartition("_"), t) for n, t in contents.items())
    }
    return {name: TextFile(Path("a.sala/text", name), content) for name, content in named.items()}


def refused(files: dict[str, TextFile]) -> str:
    with pytest.raises(BundleError) as caught:
        Tokenizer.from_files(files)
    message = str(caught.value)
    assert message == printable(message)
    return message


@pytest.mark.parametrize(
    "ids",
    [
        "true",
        "7.0",
        '"7"',
        "-1",
        "2147483648",
        "18446744073709551616",
        "[7, null]",
        "[7, true]",
        "{}",
        "[[7]]",
    ],
)
def test_stop_token_that_is_no_token_is_refused(ids: str) -> None:
    message = refused(text_files(generation_config_json=f'{{"eos_token_id": {ids}}}'.encode()))
    assert message.startswith(f"a.sala/text/{GENERATION}: eos_token_id")


def test_stop_tokens_are_those_of_both_files_once() -> None:
    marker = next(token["id"] for token in byte_level()["added_tokens"] if token["content"] == "<|im_end|>")
    files = text_files(
        generation_config_json=json.dumps({"eos_token_id": [9, marker, 9]}).encode(),
        tokenizer_config_json=b'{"eos_token": "<|im_end|>"}',
    )
    assert Tokenizer.from_files(files).stop_token_ids == (9, marker)
    for nothing in (b"{}", b'{"eos_token_id": null}', b'{"eos_token_id": []}'):
        assert Tokenizer.from_files(text_files(generation_config_json=nothing)).stop_token_ids == ()


@pytest.mark.parametrize("field", ["bos_token", "eos_token", "mask_token"])
@pytest.mark.parametrize("value", ["{}", "7", "[]", '{"content": 7}', "false"])
def test_special_token_without_text_is_refused(field: str, value: str) -> None:
    assert f"{CONFIG}: {field} is not" in refused(text_files(tokenizer_config_json=f'{{"{field}": {value}}}'.encode()))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("[1]", "chat_template[0].name"),
        ('[{"name": "default"}]', "chat_template[0].template"),
        ('[{"name": "a", "template": "b"}, {"name": [], "template": "b"}]', "chat_template[1].name"),
        ("7", "chat_template"),
        ('{"default": ["x"]}', "chat_template.default"),
    ],
)
def test_field_that_is_no_chat_template_is_refused(value: str, field: str) -> None:
    assert f"{CONFIG}: {field} is not" in refused(
        text_files(tokenizer_config_json=f'{{"chat_template": {value}}}'.encode())
    )


@pytest.mark.parametrize("name", ["tokenizer_json", "tokenizer_config_json", "generation_config_json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"\xff",
        b"\xef\xbb\xbf",
        b'{"a": NaN}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b"{\x1b}",
    ],
    ids=["empty", "list", "number", "bytes", "byte order mark", "NaN", "digits", "depth", "control character"],
)
def test_file_that_is_no_json_object_is_refused(name: str, content: bytes) -> None:
    message = refused(text_files(**{name: content}))
    assert message.startswith(f"a.sala/text/{name.removesuffix('_json')}.json ")


def test_template_that_is_no_text_is_refused() -> None:
    assert "not UTF-8 at byte 2" in refused(text_files(chat_template_jinja=b"ab\xff"))


def test_byte_order_mark_is_no_part_of_a_template() -> None:
    tokenizer = Tokenizer.from_files(text_files(chat_template_jinja="{{ 'x' }}\r\ny".encode("utf-8-sig")))
    assert tokenizer.chat is not None
    assert tokenizer.chat.render([]) == "x\ny"


def test_missing_tokenizer_is_named() -> None:
    assert "tokenizer.json is missing" in refused({})


def test_files_of_a_folder_are_opened_as_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level()), encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path).encode("the fox")
    os.mkfifo(tmp_path / GENERATION)
    with pytest.raises(BundleError, match=f"{GENERATION} is not a file"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / GENERATION).unlink()
    (tmp_path / CONFIG).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=f"{CONFIG} is not a file"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / CONFIG).unlink()
    with (tmp_path / TEMPLATE).open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"{TEMPLATE} has 1099511627776 bytes"):
        Tokenizer.from_directory(tmp_path)


def panicking() -> dict[str, Any]:
    """A tokenizer.json at which the library panics: it takes merges apart behind a prefix that is longer than they."""
    spec = byte_level()
    return spec | {"model": spec["model"] | {"continuing_subword_prefix": "longer than any"}}


def test_panic_of_the_library_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    files = text_files(tokenizer_json=json.dumps(panicking()).encode())
    assert "a.sala/text/tokenizer.json is no tokenizer" in refused(files)
    assert capfd.readouterr() == ("", "")


def test_what_others_print_meanwhile_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with hidden_panics():
        os.write(2, b"before\n")
        with pytest.raises(BundleError):
            LibraryTokenizer.from_json(json.dumps(panicking()).encode(), "tokenizer.json")
        os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"


def test_panic_is_hidden_with_and_without_a_backtrace() -> None:
    script = "import json, os, sys\nfrom sala_export.checkpoint.library_tokenizer import *\nwith hidden_panics():\n"
    script += "    for _ in range(2):\n        try: LibraryTokenizer.from_json(sys.argv[1].encode(), 'x')\n"
    script += "        except BaseException as error: print(type(error).__name__)\n"
    for backtrace in ("0", "1", "full"):
        command = [sys.executable, "-c", script, json.dumps(panicking())]
        done = subprocess.run(
            command, env=os.environ | {"RUST_BACKTRACE": backtrace}, capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == ("BundleError\nBundleError\n", "")


def test_threads_that_load_at_a_time_leave_standard_error_as_it_was() -> None:
    before = os.fstat(2)
    text = json.dumps(panicking())

    def load() -> None:
        for _ in range(20):
            with hidden_panics(), pytest.raises(BundleError):
                LibraryTokenizer.from_json(text.encode(), "x")

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.path.samestat(before, os.fstat(2))


class PanicException(BaseException):
    """As the library raises it."""


class LaterPanic:
    """A tokenizer that reads well and fails with a text."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def encode(self, text: str, **options: object) -> object:
        raise self.failure

    decode = encode


def test_later_panic_is_one_line_and_an_interrupt_passes() -> None:
    for failure, expected in (
        (PanicException("byte index 1\nis out of range \x1b[31m"), SessionError),
        (ValueError("no"), SessionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(), SystemExit),
    ):
        tokenizer = LibraryTokenizer(LaterPanic(failure), "text/tokenizer.json")  # type: ignore[arg-type]
        with pytest.raises(expected) as caught:
            tokenizer.encode("a", add_special_tokens=False)
        if expected is SessionError:
            assert str(caught.value).startswith("text/tokenizer.json: ")
            assert str(caught.value) == printable(str(caught.value))


@pytest.mark.parametrize("token_id", [-1, 1 << 31, 1 << 32, 1 << 70])
def test_id_of_no_token_is_no_token(token_id: int) -> None:
    tokenizer = Tokenizer.from_files(text_files())
    assert tokenizer.token(token_id) is None
    assert tokenizer.token(7) is not None
    if not 0 <= token_id < 1 << 32:
        with pytest.raises(SalaError, match="the tokenizer fails"):
            tokenizer.decode([token_id])


def doubling(times: int) -> dict[str, Any]:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"normalizer": {"type": "Sequence", "normalizers": [double] * times}}


def long_template() -> dict[str, Any]:
    marker = {"id": "<s>", "ids": [1] * 1000, "tokens": ["<s>"] * 1000}
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 1000 + [{"Sequence": {"id": "A", "type_id": 0}}]
    single = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {"<s>": marker}}
    return {"post_processor": single}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (lambda: doubling(40), "may make a text"),
        (
            lambda: {"decoder": {"type": "Sequence", "decoders": doubling(40)["normalizer"]["normalizers"]}},
            "decoder may",
        ),
        (long_template, "puts 1000000 tokens around"),
        (lambda: {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}, "tokenizer"),
    ],
)
def test_tokenizer_that_makes_much_of_little_is_refused(fields: Callable[[], dict[str, Any]], words: str) -> None:
    spec = byte_level() | fields()
    if words == "tokenizer":
        spec |= {"added_tokens": []}
    assert words in refused(text_files(tokenizer_json=json.dumps(spec).encode()))


def test_few_doublings_are_served() -> None:
    spec = sentencepiece() | doubling(3)
    tokenizer = Tokenizer.from_files(text_files(tokenizer_json=json.dumps(spec).encode()))
    assert tokenizer.encode("a") == tokenizers.Tokenizer.from_str(json.dumps(spec)).encode("a").ids


def test_merges_without_certain_spellings_are_not_cut() -> None:
    spec = sentencepiece()
    assert cut_rule(spec) is not None
    model = spec["model"]
    assert cut_rule(spec | {"model": model | {"vocab": model["vocab"] | {"another spelling": 7}}}) is None
    assert cut_rule(spec | {"model": model | {"merges": [*model["merges"], ["", "a"]]}}) is None
