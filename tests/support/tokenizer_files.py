"""Small tokenizer.json files of the kinds that checkpoints come with, and texts that are hard to cut."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

_CORPUS = (
    "the quick brown fox's can't we'll tell don't stop 123 4567 !? ...",
    "当然可以\uff0c我们来看看这个问题。你好世界\uff0c中国人民",
    "hello world\n\nthe end   of the  line\n",
)
_BOS = "<s>"
_MARKERS = ("<|im_end|>", "<|im_start|>")

_WORDS = "the quick fox 's ' 'll can't \u2019s 1 23 ! ? ... — 当 然可以 \uff0c 。 你好世界 中国 € é ß 🙂 ▁ x q zz A"
_MARKER_PARTS = "<|im_end|> <s> <|im_ end|> < | > <0x0A>"
_ODD = ("e\u0301", "👩\u200d👩\u200d👧", "\x00", "\x85", "\x1c", "\u00a0", "\u2028")
_PIECES = (*_WORDS.split(" "), *_MARKER_PARTS.split(" "), *_ODD, " ", " ", "  ", "\n", "\t")


def hard_text(generator: random.Random, pieces: int) -> str:
    """Words, contractions, parts of special tokens, characters of one to four bytes, white space of all kinds."""
    return "".join(generator.choice(_PIECES) for _ in range(pieces))


def _spec(tokenizer: tokenizers.Tokenizer, *, normalized_markers: bool = False) -> dict[str, Any]:
    """The trained tokenizer as a tokenizer.json that puts `<s>` in front of texts."""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    size = len(spec["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized_markers, "special": True}
    bos = spec["model"]["vocab"][_BOS]
    markers = {_BOS: bos} | {marker: size + i for i, marker in enumerate(_MARKERS)}
    spec["added_tokens"] = [{"id": i, "content": content, **flags} for content, i in markers.items()]
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": _BOS, "type_id": 0}}, first],
        "pair": [first, second],
        "special_tokens": {_BOS: {"id": _BOS, "ids": [bos], "tokens": [_BOS]}},
    }
    return spec


@functools.cache
def _sentencepiece_json() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", _BOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str()


def sentencepiece(*, normalized_markers: bool = False) -> dict[str, Any]:
    """SentencePiece-style BPE with byte fallback, as MiniCPM and Llama 2 have it: spaces by a normalizer, no words."""
    spec = _spec(tokenizers.Tokenizer.from_str(_sentencepiece_json()), normalized_markers=normalized_markers)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    return spec | {"pre_tokenizer": None}


def metaspace(prepend_scheme: str, *, split: bool) -> dict[str, Any]:
    """The same with a pre-tokenizer instead of the normalizer."""
    spec = _spec(tokenizers.Tokenizer.from_str(_sentencepiece_json()))
    part = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": split}
    return spec | {"pre_tokenizer": part}


@functools.cache
def _byte_level_json(add_prefix_space: bool) -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[_BOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    return tokenizer.to_str()


def byte_level(*, add_prefix_space: bool = False) -> dict[str, Any]:
    """Byte-level BPE over the words of GPT-2."""
    return _spec(tokenizers.Tokenizer.from_str(_byte_level_json(add_prefix_space)))
