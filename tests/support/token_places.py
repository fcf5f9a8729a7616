"""Tokenizer folders whose tokens are named in the five places that transformers reads."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from .tokenizer_files import byte_level, hard_text, metaspace, sentencepiece

Files = dict[str, dict[str, Any]]
"""JSON files of a tokenizer by name, without `.json`."""

NEW = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool call>", "zz", "<x>", "<Y>", "é<", "▁q")
"""Tokens that a base tokenizer does not have, some like ordinary text."""
_IN_VOCABULARY = ("<s>", "th", "ll", "q")
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "image_token")


def word_piece() -> dict[str, Any]:
    """Small letters only, split at white space and punctuation."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox can tell, don't stop! hello world q 123"] * 5, trainer)
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    return spec


KINDS = {
    "byte level": byte_level,
    "byte level, prefix space": lambda: byte_level(add_prefix_space=True),
    "sentencepiece": sentencepiece,
    "metaspace, first": lambda: metaspace("first", split=False),
    "metaspace, always": lambda: metaspace("always", split=True),
    "word piece": word_piece,
}


def base(kind: str) -> Files:
    """A tokenizer of the kind whose only added token, if any, is `<s>`."""
    spec = copy.deepcopy(KINDS[kind]())
    return {"tokenizer": spec | {"added_tokens": [t for t in spec["added_tokens"] if t["content"] == "<s>"]}}


def vocabulary_size(files: Files) -> int:
    """The first id that is free."""
    return len(files["tokenizer"]["model"]["vocab"])


def random_files(chance: random.Random, kind: str) -> Files:
    """Tokens in any of the places, some in several, with any flags."""
    files = base(kind)
    first = vocabulary_size(files)
    tokens = chance.sample(NEW, chance.randint(1, 5))
    config: dict[str, Any] = {}
    if chance.random() < 0.3:
        files["tokenizer"]["added_tokens"] += [
            {"id": first + i, "content": content, **_flags(chance)} for i, content in enumerate(tokens[:2])
        ]
    named = [*tokens, chance.choice(_IN_VOCABULARY)]
    if chance.random() < 0.5:
        some = chance.sample(tokens, chance.randint(1, len(tokens)))
        config["added_tokens_decoder"] = {
            str(first + i): {"content": content, **_some_flags(chance)} for i, content in enumerate(some)
        }
    _name_special(chance, config, named)
    if chance.random() < 0.4:
        files["special_tokens_map"] = {}
        _name_special(chance, files["special_tokens_map"], named, typed=False)
    if chance.random() < 0.4:
        files["added_tokens"] = {content: first + i for i, content in enumerate(chance.sample(tokens, len(tokens)))}
    for name in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"):
        if chance.random() < 0.2:
            config[name] = chance.choice([True, False])
    if config or chance.random() < 0.5:
        files["tokenizer_config"] = config
    return files


def _flags(chance: random.Random) -> dict[str, bool]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: chance.random() < (0.5 if name in ("normalized", "special") else 0.15) for name in names}


def _some_flags(chance: random.Random) -> dict[str, bool]:
    return {name: flag for name, flag in _flags(chance).items() if chance.random() < 0.7}


def _name_special(chance: random.Random, fields: dict[str, Any], tokens: list[str], *, typed: bool = True) -> None:
    def token() -> Any:
        content = chance.choice(tokens)
        if chance.random() < 0.6:
            return content
        if typed:
            return {"__type": "AddedToken", "content": content, **_some_flags(chance)}
        return {"content": content} | {name: flag for name, flag in _some_flags(chance).items() if name != "special"}

    for name in chance.sample(_NAMES, chance.randint(0, 3)):
        fields[name] = chance.choice([token(), token(), None])
    if chance.random() < 0.4:
        extra = chance.choice(["additional_special_tokens", "extra_special_tokens"])
        fields[extra] = [chance.choice(tokens) for _ in range(chance.randint(0, 3))]
    elif chance.random() < 0.2:
        fields["extra_special_tokens"] = {"image_token": chance.choice(tokens), "audio_token": chance.choice(tokens)}


def text_around(chance: random.Random) -> str:
    """A text with tokens of the folders, in words, beside white space, and alone."""
    parts = [*NEW, "<s>", " ", "  ", "\n", "a", "The q", "ll", "[UNK]"]
    return "".join(chance.choice([*parts, hard_text(chance, 2)]) for _ in range(chance.randint(1, 12)))


def write(files: Files, directory: Path) -> Path:
    """Write the files to a new directory."""
    directory.mkdir()
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return directory
