"""Tokens that are named beside tokenizer.json, against transformers: ids, streams, decoded text, stop tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.token_places import KINDS, Files, base, random_files, text_around, vocabulary_size, write

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
