"""`sala-export eval` on the passkey model, and the texts that it makes, as a reader sees them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.passkey import PAIRS
from support.passkey_text import WORDS

from sala_export.evaluation.haystack import Frame, haystack_ids
from sala_export.evaluation.tasks import HaystackReading
from sala_export.runtime.text import Tokenizer

_FILLER = [word for word in WORDS if word.startswith("w")]
QUESTION_WORD = _FILLER[0]
"""Keeps questions apart. It is in no filler."""


def passkey_words(**changed: object) -> dict[str, Any]:
    """The fields of a file for `--prompts`, in the words of the passkey model. A changed field of None is left out."""
    generator = random.Random(0)
    fields: dict[str, object] = {
        "filler": [" ".join(generator.choices(_FILLER[1:], k=16)) for _ in range(100)],
        "keys": [f"k{pair}" for pair in range(PAIRS)],
        "values": [f"v{pair}" for pair in range(PAIRS)],
        "needle": "{key} {value}",
        "question": f"{QUESTION_WORD} {{key}}",
    }
    return {name: value for name, value in {**fields, **changed}.items() if value is not None}


def write_passkey_words(path: Path, **changed: object) -> Path:
    """Write `passkey_words` as a file; returns `path`."""
    path.write_text(json.dumps(passkey_words(**changed)), encoding="utf-8")
    return path


def laid_out(
    reading: HaystackReading, tokens: int, tokenizer: Tokenizer, frame: Frame | None = None
) -> tuple[list[int], str]:
    """A text of `tokens` tokens, as ids and decoded."""
    pieces = haystack_ids(reading, tokens, tokenizer, frame or Frame())
    ids = [token for piece in pieces for token in piece]
    return ids, tokenizer.decode(ids)
