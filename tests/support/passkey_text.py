"""The passkey model with words for its tokens, so that it can be asked over HTTP and its answers are known.

Keys are `k0` to `k15`, values `v0` to `v15`, filler `w34` to `w127`. A text that ends with a key is answered with the
value that followed the key's first mention. The chat template writes the texts of messages one behind the other.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from support.passkey import PAIRS, Passkey, needle_positions, passkey_config, passkey_prompt, write_passkey_checkpoint
from support.text_bundles import write_text_bundle
from tokenizers import models, pre_tokenizers

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-passkey-text-")
_VOCAB_SIZE = 128
WORDS = [
    "<unk>",
    "</s>",
    *(f"k{pair}" for pair in range(PAIRS)),
    *(f"v{pair}" for pair in range(PAIRS)),
    *(f"w{token}" for token in range(2 + 2 * PAIRS, _VOCAB_SIZE)),
]
TEMPLATE = "{% for message in messages %}{{ message.content }}{{ ' ' }}{% endfor %}"


@functools.cache
def passkey_text_bundle(dense_len: int = 1024) -> Path:
    """Written once per session; shared between tests, so never written to."""
    config = passkey_config(num_attention_heads=4, dense_len=dense_len)
    folder = Path(_FOLDER.name)
    checkpoint = write_passkey_checkpoint(folder / f"checkpoint-{dense_len}", config)
    vocabulary = {word: token for token, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (checkpoint / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {"eos_token": WORDS[1], "chat_template": TEMPLATE}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return write_text_bundle(checkpoint, folder / f"passkey-{dense_len}.sala")


def passkey_text(length: int, seed: int = 0) -> tuple[str, list[Passkey]]:
    """A text of `length` words with five needles."""
    tokens, needles = passkey_prompt(length, needle_positions(length), seed)
    return text_of(tokens.tolist()), needles


def text_of(tokens: Sequence[int]) -> str:
    """The words of token ids."""
    return " ".join(WORDS[token] for token in tokens)


def question(needle: Passkey) -> str:
    """The words that ask for the value of a needle."""
    return text_of(needle.question().tolist())
