"""Streams of text against the `tokenizers` library on the whole, chat templates, and files that are wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from support.tokenizer_files import byte_level, hard_text, metaspace, sentencepiece

from sala_export.checkpoint.library_tokenizer import LibraryTokenizer
from sala_export.errors import BundleError, RequestError, SessionError, UnsupportedError
from sala_export.runtime import text
from sala_export.runtime.text import Tokenizer
from sala_export.runtime.text_cuts import cut_rule

Spec = dict[str, Any]

STREAMABLE: dict[str, Callable[[], Spec]] = {
    "sentencepiece": sentencepiece,
    "sentencepiece, normalized markers": lambda: sentencepiece(normalized_markers=True),
    "metaspace, always": lambda: metaspace("always", split=True),
    "metaspace, first": lambda: metaspace("first", split=False),
    "metaspace, never": lambda: metaspace("never", split=False),
    "byte level": byte_level,
    "byte level, prefix space": lambda: byte_level(add_prefix_space=True),
}


def with_fields(spec: Spec, **fields: object) -> Spec:
    return spec | fields


def with_model(spec: Spec, **fields: object) -> Spec:
    return spec | {"model": spec["model"] | fields}


def with_marker(spec: Spec, **fields: object) -> Spec:
    first, *others = spec["added_tokens"]
    return spec | {"added_tokens": [*others, first | fields]}


DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}
UNKNOWN_KINDS: dict[str, Callable[[], Spec]] = {
    "normalizer": lambda: with_fields(byte_level(), normalizer={"type": "NFC"}),
    "deleting normalizer": lambda: with_fields(
        metaspace("first", split=True), normalizer={"type": "Replace", "pattern": {"String": "q"}, "content": ""}
    ),
    "pre-tokenizer": lambda: with_fields(sentencepiece(), pre_tokenizer=DIGITS),
    "two pre-tokenizers": lambda: with_fields(
        byte_level(), pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, byte_level()["pre_tokenizer"]]}
    ),
    "whole words without merges": lambda: with_model(sentencepiece(), ignore_merges=True),
    "marker that takes space": lambda: with_marker(byte_level(), lstrip=True),
    "marker that is a word": lambda: with_marker(byte_level(), single_word=True),
}


def make(spec: Spec) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return Tokenizer(LibraryTokenizer(library, "tokenizer.json"), rule=cut_rule(spec)), library


def stream(tokenizer: Tokenizer, data: bytes, cuts: random.Random, largest: int) -> tuple[list[int], int]:
    """All ids, and how many came before the end."""
    encoder = tokenizer.stream_encoder()
    ids: list[int] = []
    start = 0
    while start < len(data):
        end = start + cuts.randint(1, largest)
        ids += encoder.push(data[start:end])
        start = end
    early = len(ids)
    return ids + list(encoder.finish()), early


@pytest.mark.parametrize("kind", STREAMABLE)
@pytest.mark.parametrize("block", [1, 7])
def test_streamed_ids_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    # As many cuts as there can be.
    monkeypatch.setattr(text, "_BLOCK_CHARACTERS", block)
    tokenizer, library = make(STREAMABLE[kind]())
    chance = random.Random(0)
    early = total = 0
    for _ in range(300):
        whole = hard_text(chance, chance.randint(1, 60))
        ids, before_the_end = stream(tokenizer, whole.encode(), chance, 9)
        assert ids == library.encode(whole).ids
        early, total = early + before_the_end, total + len(ids)
    assert early > 0.8 * total


@pytest.mark.parametrize("kind", STREAMABLE)
def test_ids_that_are_settled_early_are_those_of_any_whole(kind: str) -> None:
    tokenizer, library = make(STREAMABLE[kind]())
    chance = random.Random(0)
    settled = total = 0
    for _ in range(100):
        pieces = [hard_text(chance, chance.randint(1, 60)) for _ in range(3)]
        encoder, ids = tokenizer.stream_encoder(), []
        for piece in pieces:
            ids += encoder.push(piece)
            ids += encoder.settle()
        early = len(ids)
        ids += encoder.finish()
        assert ids == library.encode("".join(pieces)).ids
        settled, total = settled + early, total + len(ids)
    assert settled > 0.8 * total


class AnyCut:
    def allows(self, before: str, after: str) -> bool:
        return True


@pytest.mark.parametrize("kind", STREAMABLE)
def test_texts_tell_cuts_at_the_wrong_places(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(text, "_BLOCK_CHARACTERS", 1)
    _, library = make(STREAMABLE[kind]())
    chance = random.Random(0)
    texts = [hard_text(chance, 30) for _ in range(30)]
    wrong = Tokenizer(LibraryTokenizer(library, "tokenizer.json"), rule=AnyCut())
    assert any(stream(wrong, whole.encode(), chance, 9)[0] != library.encode(whole).ids for whole in texts)


@pytest.mark.parametrize("kind", UNKNOWN_KINDS)
def test_tokenizer_without_a_rule_waits_for_the_end(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(text, "_BLOCK_CHARACTERS", 1)
    tokenizer, library = make(UNKNOWN_KINDS[kind]())
    assert not tokenizer.streams
    chance = random.Random(0)
    whole = hard_text(chance, 200)
    assert stream(tokenizer, whole.encode(), chance, 9) == (library.encode(whole).ids, 0)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_long_text_is_not_held_back(kind: str) -> None:
    tokenizer, library = make(STREAMABLE[kind]())
    whole = "我们来看看这个问题。the fox can't stop. " * 2000
    encoder = tokenizer.stream_encoder()
    ids: list[int] = []
    for start in range(0, len(whole), 1000):
        ids += encoder.push(whole[start : start + 1000])
    held = len(library.encode(whole).ids) - len(ids)
    assert held <= text._BLOCK_CHARACTERS + 1000
    assert ids + encoder.finish() == library.encode(whole).ids


def test_text_that_goes_on_has_no_beginning() -> None:
    tokenizer, library = make(sentencepiece())
    assert tokenizer.encode("the fox") == library.encode("the fox").ids
    without = library.encode("the fox", add_special_tokens=False).ids
    encoder = tokenizer.stream_encoder(add_special_tokens=False)
    assert tokenizer.encode("the fox", add_special_tokens=False) == without
    assert [*encoder.push("the fox"), *encoder.finish()] == without
    assert library.encode("the fox").ids == [library.token_to_id("<s>"), *without]


def test_empty_text_has_no_tokens() -> None:
    tokenizer, _ = make(byte_level())
    encoder = tokenizer.stream_encoder()
    assert tokenizer.encode("") == []
    assert [*encoder.push(b""), *encoder.push(""), *encoder.finish()] == []


@pytest.mark.parametrize(
    ("pieces", "offset"),
    [
        ([b"abc\xff"], 3),
        ([b"ab", b"c\xe4", b"\xbdx"], 3),  # a character that begins in one piece and breaks in the next
        (["当 is no byte of the stream", b"ab\xe4\xbd\xa0", b"\x80"], 5),
        ([b"ab\xe4\xbd"], 2),  # the end
        ([b"ab\xe4", "text"], 2),
    ],
)
def test_bytes_that_are_no_utf8_are_named_by_offset(pieces: list[str | bytes], offset: int) -> None:
    encoder = make(byte_level())[0].stream_encoder()

    def push_all() -> None:
        for piece in pieces:
            encoder.push(piece)
        encoder.finish()

    with pytest.raises(SessionError, match=f"not UTF-8 at byte {offset},"):
        push_all()


def test_half_a_surrogate_pair_is_refused() -> None:
    tokenizer, _ = make(byte_level())
    for encode in (tokenizer.encode, tokenizer.stream_encoder().push):
        with pytest.raises(SessionError, match="surrogate pair at character 2"):
            encode("ab\ud800")


def decoded(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream_decoder()
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace, first", "byte level"])
def test_streamed_pieces_are_whole_characters_and_make_up_the_text(kind: str) -> None:
    tokenizer, library = make(STREAMABLE[kind]())
    chance = random.Random(1)
    for _ in range(100):
        ids = library.encode(hard_text(chance, chance.randint(1, 40))).ids
        pieces = decoded(tokenizer, ids)
        assert "".join(pieces) == library.decode(ids, skip_special_tokens=True)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_character_of_several_tokens_comes_with_its_last(kind: str) -> None:
    tokenizer, library = make(STREAMABLE[kind]())
    ids = library.encode("x🙂y", add_special_tokens=False).ids
    pieces = [piece for piece in decoded(tokenizer, ids) if piece]
    assert len(ids) > len(pieces)
    assert "".join(pieces) == "x🙂y"
    assert any("🙂" in piece for piece in pieces)


def test_bytes_of_no_character_come_out_as_replacements() -> None:
    tokenizer, library = make(byte_level())
    chance = random.Random(2)
    for _ in range(100):
        ids = [chance.randrange(library.get_vocab_size()) for _ in range(30)]
        assert "".join(decoded(tokenizer, ids)) == library.decode(ids, skip_special_tokens=True)
    tokenizer, library = make(sentencepiece())
    lost = [library.token_to_id(token) for token in ("<0xE4>", "x", "<0xE4>")]
    assert "".join(decoded(tokenizer, lost)) == "\N{REPLACEMENT CHARACTER}x\N{REPLACEMENT CHARACTER}"


def write_text_folder(directory: Path, **config: object) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(byte_level()), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def test_folder_gives_stop_tokens_and_ignores_truncation(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec = byte_level() | {"truncation": truncation}
    write_text_folder(tmp_path, eos_token={"content": "<|im_end|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}', encoding="utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path)
    marker = next(token["id"] for token in spec["added_tokens"] if token["content"] == "<|im_end|>")
    assert tokenizer.stop_token_ids == (7, 9, marker)
    assert tokenizer.chat is None
    assert tokenizer.decode(tokenizer.encode("the quick brown fox")) == "the quick brown fox"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", None, "does not exist"),
        ("tokenizer.json", "{", "cannot be read as JSON"),
        ("tokenizer.json", "[]", "holds list"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "is no tokenizer that"),
        ("tokenizer_config.json", "\xff", "cannot be read as JSON"),
    ],
)
def test_spoilt_file_is_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    write_text_folder(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(BundleError, match=words) as caught:
        Tokenizer.from_directory(tmp_path)
    assert name in str(caught.value)


TEMPLATE = """\
{{ bos_token }}{% for message in messages %}
    {%- if message.role == "tool" %}{{ raise_exception("no role tool") }}{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


def chat_tokenizer(directory: Path, template: object = TEMPLATE) -> Tokenizer:
    return Tokenizer.from_directory(write_text_folder(directory, bos_token={"content": "<s>"}, chat_template=template))


def test_template_renders_a_conversation(tmp_path: Path) -> None:
    chat = chat_tokenizer(tmp_path).chat
    assert chat is not None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert chat.render(messages, add_generation_prompt=False) == expected
    assert chat.render(messages) == expected + "<|im_start|>assistant\n"


def test_turn_begins_or_goes_on_with_a_conversation(tmp_path: Path) -> None:
    chat = chat_tokenizer(tmp_path).chat
    assert chat is not None
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.turn("Hi", goes_on=False) == "<s>" + asked
    assert chat.turn("Hi", goes_on=True) == "<|im_end|>\n" + asked
    for goes_on in (False, True):
        before, after, trims = chat.around_prompt(goes_on=goes_on)
        assert before + "Hi" + after == chat.turn("Hi", goes_on=goes_on)
        assert not trims


def test_template_that_does_not_compile_keeps_nobody_from_text(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, "{% for %}")
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
    assert tokenizer.chat is not None
    for use in (tokenizer.chat.compile, lambda: tokenizer.chat.turn("Hi", goes_on=False)):
        with pytest.raises(BundleError, match=r"tokenizer_config\.json: the chat template does not compile"):
            use()


def test_template_with_a_name_is_chosen_by_it(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "r{{ documents }}"}, {"name": "short", "template": "s{{ eos_token }}"}]
    chat = chat_tokenizer(tmp_path, named).chat
    assert chat is not None
    assert chat.names == ("rag", "short")
    assert chat.named("short").render([]) == "s"
    with pytest.raises(
        UnsupportedError, match="none of the chat templates is named 'default': choose one of rag, short"
    ):
        chat.render([])
    with pytest.raises(RequestError, match="no chat template 'long': its names are rag, short"):
        chat.named("long")


@pytest.mark.parametrize("field", [[{"name": "only", "template": "one"}], {"only": "one"}], ids=["list", "object"])
def test_single_template_is_taken_whatever_its_name(tmp_path: Path, field: object) -> None:
    chat = chat_tokenizer(tmp_path, field).chat
    assert chat is not None
    assert chat.render([]) == chat.named("only").render([]) == "one"


def test_template_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    chat = chat_tokenizer(tmp_path, {"default": "plain", "tool_use": "{{ tools | length }} tools"}).chat
    assert chat is not None
    assert (chat.render([]), chat.render([], tools=[{}, {}])) == ("plain", "2 tools")


def test_files_of_templates_with_names_are_those_that_transformers_writes(tmp_path: Path) -> None:
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(byte_level())),
        chat_template={"default": "{{ bos_token }}plain", "rag": "r{% if documents %}{{ documents[0] }}{% endif %}"},
        bos_token="<s>",
    )
    reference.save_pretrained(tmp_path)
    chat = Tokenizer.from_directory(tmp_path).chat
    assert chat is not None
    messages = [{"role": "user", "content": "Hi"}]
    for name in (None, "rag"):
        expected = reference.apply_chat_template(messages, chat_template=name, tokenize=False, documents=[{"a": 1}])
        assert (chat if name is None else chat.named(name)).render(messages, documents=[{"a": 1}]) == expected


def test_file_of_the_template_comes_before_the_field(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    first = chat_tokenizer(tmp_path, named).chat
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    second = chat_tokenizer(tmp_path, named).chat
    assert first is not None
    assert second is not None
    assert (first.render([]), second.render([])) == ("named", "file")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (TEMPLATE, "no role tool"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
        ("{{ 1 + messages }}", "unsupported operand"),
        ("{{ missing.field }}", "undefined"),
    ],
)
def test_template_that_fails_is_one_error(tmp_path: Path, template: str, words: str) -> None:
    chat = chat_tokenizer(tmp_path, template).chat
    assert chat is not None
    with pytest.raises(SessionError, match=words) as caught:
        chat.render([{"role": "tool", "content": ""}])
    assert "\n" not in str(caught.value)


def test_json_of_a_template_is_plain(tmp_path: Path) -> None:
    chat = chat_tokenizer(tmp_path, "{{ tools | tojson }}").chat
    assert chat is not None
    assert chat.render([], tools=[{"a": "<当'>"}]) == '[{"a": "<当\'>"}]'
