"""Tokenizers that make much of little are refused before they do. Those of models take long texts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import tokenizers
from support.tokenizer_files import byte_level, metaspace, sentencepiece
from tokenizers import decoders, normalizers, pre_tokenizers

from sala_export.checkpoint.library_tokenizer import LibraryTokenizer
from sala_export.checkpoint.tokenizer_limits import MOST_BYTES, limited_growth
from sala_export.errors import BundleError, SessionError

LONG_TEXT = 10_000_000
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def prepend(text: str) -> dict[str, Any]:
    return {"type": "Prepend", "prepend": text}


def normalizer(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def load(fields: dict[str, Any]) -> LibraryTokenizer:
    return LibraryTokenizer.from_json(json.dumps(byte_level() | fields).encode(), "tokenizer.json")


NESTED = {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 2}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [TEXT] * 2, "pair": [], "special_tokens": {}}
METASPACE = metaspace("always", split=True)["pre_tokenizer"]
GROWING: dict[str, tuple[dict[str, Any], str]] = {
    "bytes of bytes": (normalizer(*[{"type": "ByteLevel"}] * 9), "normalizer"),
    "words of bytes": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 30}}, "pre_tokenizer"),
    "both": (
        normalizer(*[{"type": "ByteLevel"}] * 5)
        | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 5}},
        "pre_tokenizer",
    ),
    "long beginning": (normalizer(prepend("p" * 1000)), "normalizer"),
    "beginning replaced": (normalizer(prepend("p" * 20), replace("p", "q" * 20)), "normalizer"),
    "one replacement": (normalizer(replace("a", "q" * 60_000)), "normalizer"),
    "expression": (normalizer(replace("(?=a)", "q" * 300, "Regex")), "normalizer"),
    "ligatures in a nested list": (normalizer({"type": "NFC"}, NESTED), "normalizer"),
    "long marks of words": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [METASPACE] * 4,
            }
        },
        "pre_tokenizer",
    ),
    "template": ({"post_processor": {"type": "Sequence", "processors": [TWICE] * 8}}, "post_processor"),
    "decoder": (
        {"decoder": {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 20}},
        "decoder",
    ),
}


@pytest.mark.parametrize("what", GROWING)
def test_steps_that_make_much_of_little_are_refused_at_once(what: str) -> None:
    fields, component = GROWING[what]
    # The library applies a normalizer to such a token while it reads the file.
    token = {"id": 900, "content": "\u00e9a" * 200, "normalized": True, "special": False}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    begin = time.monotonic()
    with pytest.raises(BundleError, match=rf"steps up to its {component} may make a text \d+ times as long"):
        load(fields | {"added_tokens": [token]})
    assert time.monotonic() - begin < 1


def test_two_fields_of_one_name_are_refused() -> None:
    """The library keeps the first normalizer here, and Python the second."""
    steps = json.dumps(normalizer(*[{"type": "ByteLevel"}] * 30))[1:-1]
    content = json.dumps(byte_level() | {"normalizer": None})[:-1] + f', {steps}, "normalizer": null}}'
    with pytest.raises(BundleError, match="two fields of one name"):
        LibraryTokenizer.from_json(content.encode(), "tokenizer.json")


def test_text_and_tokens_are_measured_before_they_are_used() -> None:
    tokenizer = load(normalizer(replace("a", "b" * 50)) | {"decoder": replace("a", "b" * 150)})
    assert tokenizer.encode("aa", add_special_tokens=False).tokens
    begin = time.monotonic()
    with pytest.raises(SessionError, match=r"tokenizer.json: the text may become \d+ bytes"):
        tokenizer.encode("a" * 3_000_000, add_special_tokens=False)
    token = tokenizer.token_id("a")
    assert token is not None
    assert tokenizer.decode([token] * 2, skip_special_tokens=False) == "b" * 300
    with pytest.raises(SessionError, match=r"tokenizer.json: the text may become \d+ bytes"):
        tokenizer.decode([token] * 2_000_000, skip_special_tokens=False)
    assert time.monotonic() - begin < 5


def test_added_tokens_are_measured_before_the_file_is_read() -> None:
    fields = normalizer(*[{"type": "ByteLevel"}] * 6)
    token = {"id": 900, "content": "a" * (MOST_BYTES // 50), "normalized": True, "special": False}
    with pytest.raises(BundleError, match=r"may make \d+ bytes of its tokens"):
        load(fields | {"added_tokens": [token]})


@pytest.mark.parametrize("depth", [900, 990, 2000, 100_000])
def test_deep_tokens_are_refused(depth: int) -> None:
    content = json.dumps(byte_level() | {"added_tokens": 0}).replace(
        '"added_tokens": 0', '"added_tokens": ' + "[" * depth + "]" * depth
    )
    with pytest.raises(BundleError, match=r"tokenizer.json is no tokenizer"):
        LibraryTokenizer.from_json(content.encode(), "tokenizer.json")


SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}"}, "behavior": "Isolated", "invert": False}
OF_MODELS: dict[str, dict[str, Any]] = {
    "MiniCPM, Llama 2": sentencepiece(),
    "Llama 2 by words": metaspace("first", split=False),
    "GPT-2": byte_level(add_prefix_space=True),
    "Gemma": {"normalizer": replace(" ", "\u2581"), "pre_tokenizer": SPLIT, "decoder": replace("\u2581", " ")},
    "Qwen": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]},
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
    },
    "Llama 3": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]},
        "post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, byte_level()["post_processor"]]},
    },
}


@pytest.mark.parametrize("model", OF_MODELS)
def test_tokenizers_of_models_take_long_texts(model: str) -> None:
    growth = limited_growth(load(OF_MODELS[model]).spec(), model)
    assert growth.encoding * LONG_TEXT <= MOST_BYTES
    assert growth.decoding * LONG_TEXT <= MOST_BYTES


def components(module: Any, lacking: str) -> dict[str, Any]:
    found = {name: part for name, part in vars(module).items() if isinstance(part, type)}
    return {name: found[name] for name in found if name not in lacking.split()}


NORMALIZERS = components(normalizers, "Normalizer Sequence Precompiled Prepend Replace")
PRE_TOKENIZERS = components(pre_tokenizers, "PreTokenizer Sequence CharDelimiterSplit Split")
DECODERS = components(decoders, "Decoder DecodeStream Sequence Replace")


def utf8(text: str) -> int:
    return len(text.encode())


def growth_with(component: str, part: Any) -> tuple[int, int]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    setattr(tokenizer, component, part)
    growth = limited_growth(json.loads(tokenizer.to_str()), "tokenizer.json")
    return growth.encoding, growth.decoding


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_no_character_grows_more_by_a_normalizer_than_its_factor(kind: str) -> None:
    part = NORMALIZERS[kind]()
    factor, _ = growth_with("normalizer", part)
    characters = [chr(code) for code in range(0x3_0000) if not 0xD800 <= code < 0xE000]
    worst = max(utf8(part.normalize_str(character)) / utf8(character) for character in characters)
    assert worst <= factor <= max(1, 6 * worst)


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_no_text_grows_more_by_a_pre_tokenizer_than_its_factor(kind: str) -> None:
    part = PRE_TOKENIZERS[kind]()
    factor, _ = growth_with("pre_tokenizer", part)
    for text in ("a", "\u00e9", " ", "a b", "\u4f60\u597d\uff0c1 2", "\U0001f642!", "\n", "a\u00e9\x00"):
        assert sum(utf8(piece) for piece, _ in part.pre_tokenize_str(text)) <= factor * utf8(text)


@pytest.mark.parametrize("kind", DECODERS)
def test_no_token_grows_more_by_a_decoder_than_its_factor(kind: str) -> None:
    empty = {"BPEDecoder": {"suffix": ""}, "CTC": {"word_delimiter_token": "", "pad_token": "x"}}
    part = DECODERS[kind](**empty.get(kind, {}))
    _, factor = growth_with("decoder", part)
    for tokens in (["a"], ["\u0122"], ["\u0122", "a", "\u0122"], ["<0xFF>", "<0xE4>", "a"], ["", "\u2581", "##b", ""]):
        assert utf8(part.decode(tokens)) <= factor * sum(utf8(token) or 1 for token in tokens)
