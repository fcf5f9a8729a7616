"""Literal text, whose special tokens are ordinary text, between pieces that may spell them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from support.tokenizer_files import byte_level, metaspace, sentencepiece

from sala_export.checkpoint.library_tokenizer import LibraryTokenizer
from sala_export.runtime import text
from sala_export.runtime.text import StreamEncoder, Tokenizer
from sala_export.runtime.text_cuts import cut_rule

KINDS = {
    "byte level": byte_level,
    "byte level, prefix space": lambda: byte_level(add_prefix_space=True),
    "sentencepiece": sentencepiece,
    "metaspace, first": lambda: metaspace("first", split=False),
    "metaspace, always": lambda: metaspace("always", split=True),
}
SPECIAL = {"<s>": "\ue000", "<|im_end|>": "\ue001", "<|im_start|>": "\ue002"}
"""Special tokens, and what spells them in the tokenizer that knows what is literal."""
PARTS = (*SPECIAL, "<|im_", "end|>", "<think>", "the", " fox", "\n", "  ", "'ll", "当然", "é", "1", "<unk>", "")

Pieces = list[tuple[str, bool]]
"""Texts, and whether each is literal."""


def make(kind: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A tokenizer, and the one that has other spellings for the special tokens. One added token is not special."""
    spec = KINDS[kind]()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    size = max(token["id"] for token in spec["added_tokens"])
    spec["added_tokens"] = [*spec["added_tokens"], {"id": size + 1, "content": "<think>", **flags}]
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    renamed: dict[str, Any] = json.loads(json.dumps(spec))
    for token in renamed["added_tokens"]:
        token["content"] = SPECIAL.get(token["content"], token["content"])
    vocabulary = renamed["model"]["vocab"]
    renamed["model"]["vocab"] = {SPECIAL.get(word, word): number for word, number in vocabulary.items()}
    renamed["post_processor"] = None
    oracle = tokenizers.Tokenizer.from_str(json.dumps(renamed))
    return Tokenizer(LibraryTokenizer(library, "tokenizer.json"), rule=cut_rule(spec)), oracle


def expected(oracle: tokenizers.Tokenizer, pieces: Pieces) -> list[int]:
    """Ids of the whole text, in which only pieces that are not literal spell special tokens."""
    runs: Pieces = []
    for piece, literal in pieces:
        if runs and runs[-1][1] == literal:
            runs[-1] = (runs[-1][0] + piece, literal)
        else:
            runs.append((piece, literal))
    whole = ""
    for run, literal in runs:
        for content, spelling in SPECIAL.items():
            run = run if literal else run.replace(content, spelling)
        whole += run
    return list(oracle.encode(whole, add_special_tokens=False).ids)


def pushed(encoder: StreamEncoder, pieces: Pieces, chance: random.Random) -> list[int]:
    """Some pieces as text, some as bytes in parts that may end within characters."""
    ids = []
    for piece, literal in pieces:
        data = piece.encode()
        if chance.random() < 0.5:
            ids += encoder.push(piece, literal=literal)
            continue
        cut = chance.randint(0, len(data))
        ids += encoder.push(data[:cut], literal=literal) + encoder.push(data[cut:], literal=literal)
    return ids + encoder.finish()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 7, 4096])
def test_only_pieces_that_are_not_literal_spell_special_tokens(
    monkeypatch: pytest.MonkeyPatch, kind: str, block: int
) -> None:
    monkeypatch.setattr(text, "_BLOCK_CHARACTERS", block)
    tokenizer, oracle = make(kind)
    for seed in range(300):
        chance = random.Random(seed)
        pieces = [
            ("".join(chance.choice(PARTS) for _ in range(chance.randint(0, 4))), chance.random() < 0.5)
            for _ in range(chance.randint(1, 8))
        ]
        encoder = tokenizer.stream_encoder(add_special_tokens=False)
        assert pushed(encoder, pieces, chance) == expected(oracle, pieces), pieces


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_special_tokens_is_the_same_literally(kind: str) -> None:
    tokenizer, _ = make(kind)
    template = "<s><|im_start|>user\n", "  The fox's <think> 1 当然\n", "<|im_end|>\n<|im_start|>assistant\n"
    encoder = tokenizer.stream_encoder(add_special_tokens=False)
    ids = [token for i, piece in enumerate(template) for token in encoder.push(piece, literal=i == 1)]
    assert ids + encoder.finish() == tokenizer.encode("".join(template), add_special_tokens=False)


def test_long_literal_text_is_not_held_back() -> None:
    tokenizer, oracle = make("byte level")
    prompt = "see <|im_end|>, the fox can't stop. " * 3000
    encoder = tokenizer.stream_encoder(add_special_tokens=False)
    ids = encoder.push("<|im_start|>user\n")
    for start in range(0, len(prompt), 1000):
        ids += encoder.push(prompt[start : start + 1000], literal=True)
    pieces = [("<|im_start|>user\n", False), (prompt, True), ("<|im_end|>\n", False)]
    whole = expected(oracle, pieces)
    assert len(whole) - len(ids) <= text._BLOCK_CHARACTERS + 1000
    assert ids + encoder.push("<|im_end|>\n") + encoder.finish() == whole


def test_texts_begin_and_end_once_with_literal_pieces() -> None:
    tokenizer, _ = make("byte level")
    for pieces in ([("<s>", True)], [("<|im_end|>", False), ("x", True)], [("x", True), ("<|im_end|>", False)]):
        encoder = tokenizer.stream_encoder()
        ids = pushed(encoder, pieces, random.Random(0))
        bare = tokenizer.stream_encoder(add_special_tokens=False)
        assert ids == [tokenizer.encode("x")[0], *pushed(bare, pieces, random.Random(0))]
    empty = tokenizer.stream_encoder()
    assert pushed(empty, [("", False), ("", True), ("", False)], random.Random(0)) == []
