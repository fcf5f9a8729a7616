"""Tokenizer files of a random checkpoint: real byte-level BPE over an invented vocabulary of syllables.

Any text encodes and every id decodes, whatever the vocabulary size. Ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`, the
256 bytes follow, then syllables from common to rare, and last the chat markers, as in the published vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from .config import SalaConfig

_LEADING = ("<unk>", "<s>", "</s>")
_TRAILING = ("<|im_end|>", "<|im_start|>", *(f"<|reserved_{i}|>" for i in range(6)))

_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` ids; plain text is encoded with a leading `<s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(_LEADING) - len(alphabet) - len(_TRAILING)
    if room < 0:
        raise ValueError(f"a vocabulary of {vocab_size} does not hold all bytes and markers")
    merges = list(itertools.islice(_merges(), room))
    words = (*_LEADING, *alphabet, *("".join(pair) for pair in merges), *_TRAILING)
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    markers = [AddedToken(word, special=True, normalized=False) for word in (*_LEADING, *_TRAILING)]
    tokenizer.add_special_tokens(markers)
    return tokenizer


def tokenizer_config(config: SalaConfig) -> dict[str, Any]:
    """Fields of tokenizer_config.json, chat template included."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "chat_template": _CHAT_TEMPLATE,
    }


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs that make one to three syllables, with and without the leading space (which byte-level BPE spells as Ġ)."""
    syllables = ["".join(pair) for pair in itertools.product("tnsrldmchpgbfkwvyjzxq", "eaoiu")]
    yield from itertools.product("tnsrldmchpgbfkwvyjzxq", "eaoiu")
    starts = [f"Ġ{syllable}" for syllable in syllables]
    yield from (("Ġ", syllable) for syllable in syllables)
    yield from itertools.product(starts, syllables)
    yield from itertools.product(syllables, syllables)
    pairs = itertools.product(syllables, syllables, syllables)
    yield from ((first + second, third) for first, second, third in pairs)
