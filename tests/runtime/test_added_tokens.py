"""Tokens that are named beside tokenizer.json, against transformers: ids, streams, decoded text, stop tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.token_places import KINDS, Files, base, random_files, text_around, vocabulary_size, write

from sala_export.errors import BundleError, printable
from sala_export.runtime import text
from sala_export.runtime.text import Tokenizer

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TEXTS = (
    "<|im_start|>user\nHi the<think> fox </think>  q<|im_end|>\n",
    "<s>th<|im_end|> q<|im_end|>zz a<think>b",
    "  <think>  \n</think> ",
)
MARKERS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def both(files: Files, directory: Path) -> tuple[Tokenizer, Any]:
    """The tokenizer of the folder, and that of transformers."""
    write(files, directory)
    return Tokenizer.from_directory(directory), transformers.PreTrainedTokenizerFast.from_pretrained(directory)


def streamed(tokenizer: Tokenizer, whole: str, chance: random.Random, *, literal: bool = False) -> list[int]:
    encoder = tokenizer.stream_encoder()
    data, ids, start = whole.encode(), [], 0
    while start < len(data):
        end = start + chance.randint(1, 9)
        ids += encoder.push(data[start:end], literal=literal)
        start = end
    return ids + encoder.finish()


def decoded(tokenizer: Tokenizer, ids: list[int], *, skip_special_tokens: bool) -> str:
    decoder = tokenizer.stream_decoder(skip_special_tokens=skip_special_tokens)
    return "".join(map(decoder.push, ids)) + decoder.finish()


def require_equal(tokenizer: Tokenizer, reference: Any, whole: str, chance: random.Random) -> None:
    ids = reference.encode(whole)
    assert tokenizer.encode(whole) == ids
    assert tokenizer.encode(whole, add_special_tokens=False) == reference.encode(whole, add_special_tokens=False)
    literal = reference.encode(whole, split_special_tokens=True)
    assert tokenizer.encode(whole, literal=True) == literal
    if whole:
        assert streamed(tokenizer, whole, chance) == ids
        assert streamed(tokenizer, whole, chance, literal=True) == literal
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip)
        assert decoded(tokenizer, ids, skip_special_tokens=skip) == expected


def in_decoder(files: Files, **flags: bool) -> Files:
    first = vocabulary_size(files)
    tokens = {str(first + i): {"content": marker, **FLAGS, **flags} for i, marker in enumerate(MARKERS)}
    return files | {"tokenizer_config": {"added_tokens_decoder": tokens, "eos_token": "<|im_end|>"}}


def in_tokenizer(files: Files) -> Files:
    first = vocabulary_size(files)
    tokens = [{"id": first + i, "content": marker, **FLAGS} for i, marker in enumerate(MARKERS)]
    return files | {"tokenizer": files["tokenizer"] | {"added_tokens": [*files["tokenizer"]["added_tokens"], *tokens]}}


def in_added_tokens(files: Files) -> Files:
    first = vocabulary_size(files)
    return files | {"added_tokens": {marker: first + i for i, marker in enumerate(MARKERS)}}


PLACES = {
    "tokenizer.json": in_tokenizer,
    "added_tokens_decoder": in_decoder,
    "added_tokens_decoder, as words": lambda files: in_decoder(files, single_word=True),
    "added_tokens_decoder, white space": lambda files: in_decoder(files, lstrip=True, rstrip=True),
    "added_tokens_decoder, normalized, not special": lambda files: in_decoder(files, normalized=True, special=False),
    "added_tokens.json": in_added_tokens,
    "added_tokens.json, some special": lambda files: (
        in_added_tokens(files)
        | {"special_tokens_map": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}}
    ),
    "special_tokens_map.json": lambda files: (
        files
        | {
            "special_tokens_map": {
                "eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": True},
                "extra_special_tokens": ["<|im_start|>", "<think>"],
                "end_of_thought_token": "</think>",
            }
        }
    ),
    "fields": lambda files: (
        files
        | {
            "tokenizer_config": {
                "eos_token": "<|im_end|>",
                "pad_token": None,
                "additional_special_tokens": ["<|im_start|>", "<think>"],
            }
        }
    ),
    "fields, as objects": lambda files: (
        files
        | {
            "tokenizer_config": {
                "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True},
                "extra_special_tokens": {"begin_token": "<|im_start|>", "thought_token": "<think>"},
            }
        }
    ),
    "model_specific_special_tokens": lambda files: (
        files
        | {
            "tokenizer_config": {
                "model_specific_special_tokens": {
                    "thought_token": "<think>",
                    "bos_token": "<|im_start|>",
                    "image": {"__type": "AddedToken", "content": "</think>", "rstrip": True},
                },
                "eos_token": "<|im_end|>",
                "extra_special_tokens": ["zz"],
                "image_token": {"__type": "AddedToken", "content": "q<", "lstrip": True},
            }
        }
    ),
    "a map over fields": lambda files: (
        files
        | {
            "tokenizer_config": {"eos_token": "<think>", "extra_special_tokens": ["<|im_start|>"]},
            "special_tokens_map": {
                "eos_token": "<|im_end|>",
                "pad_token": "<think>",
                "extra_special_tokens": ["</think>"],
            },
        }
    ),
    "a decoder in place of a map": lambda files: (
        in_decoder(files) | {"special_tokens_map": {"eos_token": "zz"}, "added_tokens": {"zz": 9}}
    ),
    "ids of others": lambda files: in_decoder(files) | {"tokenizer": in_tokenizer(files)["tokenizer"]},
    "ids with a gap": lambda files: (
        files | {"added_tokens": {marker: vocabulary_size(files) + 3 * i for i, marker in enumerate(MARKERS)}}
    ),
    "split": lambda files: in_tokenizer(files) | {"tokenizer_config": {"split_special_tokens": True}},
    "what transformers does not heed": lambda files: (
        files
        | {
            "tokenizer_config": {
                "bos_token": "<s>",
                "eos_token": "<|im_end|>",
                "add_bos_token": False,
                "add_eos_token": True,
                "add_prefix_space": True,
                "legacy": False,
            }
        }
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, place: str
) -> None:
    monkeypatch.setattr(text, "_BLOCK_CHARACTERS", 1)
    tokenizer, reference = both(PLACES[place](base(kind)), tmp_path / "model")
    for whole in TEXTS:
        require_equal(tokenizer, reference, whole, random.Random(0))
    eos = reference.eos_token_id
    assert tokenizer.stop_token_ids == (() if eos is None else (eos,))


@pytest.mark.parametrize("kind", KINDS)
def test_any_places_and_flags_give_what_transformers_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(text, "_BLOCK_CHARACTERS", 1)
    for seed in range(25):
        chance = random.Random(seed)
        tokenizer, reference = both(random_files(chance, kind), tmp_path / str(seed))
        for _ in range(8):
            require_equal(tokenizer, reference, text_around(chance), chance)


def test_objects_of_tokens_by_name_are_read_as_in_transformers(tmp_path: Path) -> None:
    """In one file or another, beside each other, with names of their own or those of all models."""
    for seed in range(60):
        chance = random.Random(seed)
        files = base("byte level") | {"tokenizer_config": {}, "special_tokens_map": {}}

        def name_tokens(place: str, field: str, chance: random.Random = chance, files: Files = files) -> None:
            names = chance.sample(["image_token", "thought", "eos_token", "pad_token"], chance.randint(0, 3))
            token = chance.choice
            objects = {name: token([*MARKERS, {"__type": "AddedToken", "content": "zz"}]) for name in names}
            files[place][field] = chance.choice([objects, objects, None])

        name_tokens("tokenizer_config", "model_specific_special_tokens")
        for field in chance.sample(["image_token", "audio_token", "eos_token"], chance.randint(0, 2)):
            files["tokenizer_config"][field] = chance.choice(MARKERS)
        if chance.random() < 0.4:
            name_tokens("tokenizer_config", "extra_special_tokens")
        elif chance.random() < 0.4:
            files["special_tokens_map"]["extra_special_tokens"] = {"video_token": chance.choice(MARKERS)}
        try:
            tokenizer, reference = both(files, tmp_path / str(seed))
        except AttributeError:
            # Of transformers, which takes null for an object.
            assert files["tokenizer_config"]["model_specific_special_tokens"] is None
            continue
        for whole in TEXTS:
            require_equal(tokenizer, reference, whole, chance)
        eos = reference.eos_token_id
        assert tokenizer.stop_token_ids == (() if eos is None else (eos,))


def test_token_whose_id_is_that_of_another_is_no_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = in_tokenizer(base("byte level"))
    taken = vocabulary_size(files)
    tokenizer, reference = both(files | {"added_tokens": {"<x>": taken, "<y>": taken + 1}}, tmp_path / "model")
    assert tokenizer.encode("a<x>b") == reference.encode("a<x>b")
    assert len(tokenizer.encode("<x>")) > 1
    assert (
        f"{taken} is named as the id of '<x>', but another token has that id, so it is no token here and its text is "
        "split, and 1 more have other ids or none, as in transformers: check that"
    ) in caplog.text


def test_warning_tells_where_the_file_names_other_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = base("byte level")
    first = vocabulary_size(files)
    tokenizer, reference = both(files | {"added_tokens": {"<x>": first + 9}}, tmp_path / "model")
    assert tokenizer.encode("<x>") == reference.encode("<x>")
    assert f"{first + 9} is named as the id of '<x>', but the vocabulary" in caplog.text
    caplog.clear()
    both(in_decoder(base("byte level")), tmp_path / "right")
    assert not caplog.records


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    files = in_added_tokens(base("byte level")) | {"special_tokens_map": {"eos_token": "<|im_end|>"}}
    files |= {"tokenizer_config": {"extra_special_tokens": ["<x>"]}, "generation_config": {"eos_token_id": [3]}}
    plain = Tokenizer.from_directory(write(files, tmp_path / "plain"))
    write(files, tmp_path / "marked")
    for file in (tmp_path / "marked").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    marked = Tokenizer.from_directory(tmp_path / "marked")
    assert marked.stop_token_ids == plain.stop_token_ids == (3, plain.encode("<|im_end|>")[1])
    assert marked.encode("the <x>fox<|im_end|>") == plain.encode("the <x>fox<|im_end|>")


WRONG = [
    ("tokenizer", {"added_tokens": {}}, "added_tokens"),
    ("tokenizer", {"added_tokens": ["<x>"]}, "added_tokens[0].id"),
    ("tokenizer", {"added_tokens": [{"id": "7", "content": "<x>"}]}, "added_tokens[0].id"),
    ("tokenizer", {"added_tokens": [{"id": 7}]}, "added_tokens[0]"),
    ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder"),
    ("tokenizer_config", {"added_tokens_decoder": {"a": {"content": "<x>"}}}, "added_tokens_decoder.a"),
    ("tokenizer_config", {"added_tokens_decoder": {"\u00b2": {"content": "<x>"}}}, "added_tokens_decoder.\u00b2"),
    ("tokenizer_config", {"added_tokens_decoder": {"-1": {"content": "<x>"}}}, "added_tokens_decoder.-1"),
    ("tokenizer_config", {"added_tokens_decoder": {"9" * 11: {"content": "<x>"}}}, "added_tokens_decoder.999"),
    ("tokenizer_config", {"added_tokens_decoder": {"9": "<x>"}}, "added_tokens_decoder.9"),
    ("tokenizer_config", {"added_tokens_decoder": {"9": {}}}, "added_tokens_decoder.9"),
    ("tokenizer_config", {"added_tokens_decoder": {"9": {"content": "\ud800"}}}, "added_tokens_decoder.9"),
    (
        "tokenizer_config",
        {"added_tokens_decoder": {"9": {"content": "x", "rstrip": 1}}},
        "added_tokens_decoder.9.rstrip",
    ),
    ("tokenizer_config", {"extra_special_tokens": "<x>"}, "extra_special_tokens"),
    ("tokenizer_config", {"additional_special_tokens": [7]}, "additional_special_tokens[0]"),
    ("tokenizer_config", {"extra_special_tokens": {"a_token": 7}}, "extra_special_tokens.a_token"),
    ("tokenizer_config", {"split_special_tokens": "yes"}, "split_special_tokens"),
    ("tokenizer_config", {"model_specific_special_tokens": ["<x>"]}, "model_specific_special_tokens"),
    (
        "tokenizer_config",
        {"model_specific_special_tokens": {"a_token": None}},
        "model_specific_special_tokens.a_token",
    ),
    ("special_tokens_map", {"model_specific_special_tokens": {"a_token": "<x>"}}, "model_specific_special_tokens"),
    ("special_tokens_map", {"eos_token": {"lstrip": True}}, "eos_token"),
    ("special_tokens_map", {"image_token": {"lstrip": True}}, "image_token"),
    ("special_tokens_map", {"additional_special_tokens": {"<x>": 1}}, "additional_special_tokens"),
    ("added_tokens", {"<x>": "7"}, "<x>"),
    ("added_tokens", {"<x>": 7.0}, "<x>"),
    ("added_tokens", {"\x1b[2J": None}, "\\x1b[2J"),
    ("generation_config", {"eos_token_id": "</s>"}, "eos_token_id"),
]


@pytest.mark.parametrize(("name", "fields", "field"), WRONG)
def test_field_of_a_wrong_type_is_named(tmp_path: Path, name: str, fields: dict[str, Any], field: str) -> None:
    files = base("byte level")
    write(files | {name: files.get(name, {}) | fields}, tmp_path / "model")
    with pytest.raises(BundleError) as caught:
        Tokenizer.from_directory(tmp_path / "model")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/model/{name}.json: {field}")
    assert " is not " in message
    assert message == printable(message)


@pytest.mark.parametrize("name", ["special_tokens_map", "added_tokens"])
@pytest.mark.parametrize("content", [b"[]", b"", b"\xff", b"{"])
def test_file_that_is_no_object_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write(base("byte level"), tmp_path / "model")
    (tmp_path / "model" / f"{name}.json").write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}.json "):
        Tokenizer.from_directory(tmp_path / "model")
