"""The bytes of tokens, compared with texts and with the tokenizers library."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from support.tokenizer_files import byte_level, hard_text, metaspace, sentencepiece

from sala_export.checkpoint.library_tokenizer import LibraryTokenizer
from sala_export.errors import RequestError, UnsupportedError
from sala_export.serving.grammar.vocabulary import Vocabulary


def _library(spec: dict[str, Any]) -> LibraryTokenizer:
    return LibraryTokenizer.from_json(json.dumps(spec).encode(), "tokenizer.json")


@pytest.mark.parametrize(
    ("spec", "is_whole"),
    [(sentencepiece(), False), (metaspace("first", split=True), False), (byte_level(), True)],
    ids=["sentencepiece", "metaspace", "byte_level"],
)
def test_bytes_of_tokens_join_to_the_text(spec: dict[str, Any], is_whole: bool) -> None:
    library, generator = _library(spec).literal(), random.Random(4)
    vocabulary = Vocabulary(_library(spec), 600, [5])
    for pieces in (1, 2, 7, 40, 200):
        text = hard_text(generator, pieces)
        ids = library.encode(text, add_special_tokens=False).ids
        joined = b"".join(vocabulary.tokens[i] for i in ids).decode()
        # The others write their spaces as that mark, one more in front of a text too.
        assert joined == text or (not is_whole and joined.removeprefix(" ") == text.replace("▁", " "))


def test_fixed_text_is_split_at_its_markers() -> None:
    vocabulary = Vocabulary(_library(sentencepiece()), 600, [5])
    end, start = vocabulary.markers["<|im_end|>"], vocabulary.markers["<|im_start|>"]
    assert list(vocabulary.pieces("a<|im_end|><|im_start|>b <|im_")) == ["a", end, start, "b <|im_"]
    assert list(vocabulary.pieces("")) == []


def test_added_word_is_text_and_added_markup_is_a_marker() -> None:
    spec = json.loads(json.dumps(byte_level()))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    first = 1 + max(token["id"] for token in spec["added_tokens"])
    spec["added_tokens"] += [{"id": first + i, "content": text, **flags} for i, text in enumerate(("Zug", "<tool>"))]
    vocabulary = Vocabulary(_library(spec), 600, [5])
    assert vocabulary.tokens[first] == b"Zug"
    assert "Zug" not in vocabulary.markers
    assert vocabulary.markers["<tool>"] == first + 1


@pytest.mark.parametrize(("stops", "message"), [([], "no token ends an answer"), ([600], "stop token 600 is not in")])
def test_answers_need_a_token_that_ends_them(stops: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Vocabulary(_library(byte_level()), 600, stops)


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
def test_decoder_without_bytes_is_refused(decoder: dict[str, Any] | None) -> None:
    with pytest.raises(UnsupportedError, match="need a decoder of bytes or of SentencePiece's kind"):
        Vocabulary(_library(byte_level() | {"decoder": decoder}), 600, [5])
