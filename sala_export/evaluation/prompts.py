"""The words of needle tasks: what a needle says, how it is asked for, and the filler around it.

The words that ship are English. A model of another vocabulary gets its own from a JSON file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..errors import RequestError
from ..files import OpenedFile, parse_json
from .words import sentences

_LONGEST_PIECE = 400
"""Characters. A longer sentence of a haystack is cut, so that needles come close to their depth."""
_ENDS = r".!?\u3002\uff01\uff1f"
"""What ends a sentence, also in Chinese."""
_SENTENCE = re.compile(rf"[^{_ENDS}\s][^{_ENDS}\n]{{0,{_LONGEST_PIECE}}}[{_ENDS}]*")

Filler = Callable[[Random], Iterator[str]]
"""Gives sentences without end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedleWords:
    """The words of a needle and its question. `{key}` and `{value}` in a text stand for those of the needle."""

    intro: str = (
        "Below is a long text. Some of its sentences give the secret number of a thing. Read all of it and remember "
        "the secret numbers. You will be asked for one of them."
    )
    """The beginning of the prompt, before the filler. It may be empty."""
    needle: str = "The secret number of the {key} is {value}."
    question: str = "What is the secret number of the {key} in the text above? Answer with the number."
    answer: str = "The secret number of the {key} is"
    """The beginning of the answer, which the model continues. It may be empty."""
    keys: tuple[str, ...] = ()
    """Keys to draw from. Empty makes them of English words."""
    values: tuple[str, ...] = ()
    """Values to draw from. Empty makes numbers of seven digits."""
    filler: Filler = sentences

    def of(self, text: str, key: str, value: str = "") -> str:
        """One of the texts for a needle."""
        return text.replace("{key}", key).replace("{value}", value)


_TEXTS = {"intro": (), "needle": ("{key}", "{value}"), "question": ("{key}",), "answer": ()}
"""Fields of a file that are text, and what each must have."""
_LISTS = ("keys", "values", "filler")
_OPTIONAL = ("intro", "answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadText:
    """A file of the user that was read whole."""

    text: str
    sha256: str

    @classmethod
    def read(cls, path: Path, option: str) -> ReadText:
        """Read a text. Raises: RequestError naming the option if it cannot be read, is empty or no UTF-8."""
        content = OpenedFile.open(path, error=RequestError, advice=f"give a text file as {option}").read_all()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{option} {path} is not UTF-8 at byte {error.start}: convert it first") from None
        if not text.strip():
            raise RequestError(f"{option} {path} is empty: give a text")
        return cls(text=text, sha256=hashlib.sha256(content).hexdigest())


def read_words(path: Path) -> tuple[NeedleWords, str]:
    """Read the words of needles from a JSON file. Returns them and the file's SHA-256.

    Raises: RequestError naming the file and the field that is missing, unknown or malformed.
    """
    read = ReadText.read(path, "--prompts")
    fields = parse_json(read.text.encode(), f"--prompts {path}", error=RequestError)
    if not isinstance(fields, dict):
        raise RequestError(f"--prompts {path} holds {type(fields).__name__}, expected an object with needle, question")
    known = (*_TEXTS, *_LISTS)
    if unknown := [name for name in fields if name not in known]:
        raise RequestError(f"--prompts {path}: {unknown[0]!r} is no field, expected {', '.join(known)}")
    if missing := [name for name in known if name not in fields and name not in _OPTIONAL]:
        raise RequestError(f"--prompts {path} lacks {', '.join(missing)}: docs/eval.md has an example")
    texts = {name: _text(path, name, fields.get(name, "")) for name in _TEXTS}
    keys, values, filler = (_list(path, name, fields[name]) for name in _LISTS)
    return NeedleWords(**texts, keys=keys, values=values, filler=drawn_from(filler)), read.sha256


def _text(path: Path, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"--prompts {path}: {name} is {type(value).__name__}, expected a text")
    if lacking := [part for part in _TEXTS[name] if part not in value]:
        raise RequestError(f"--prompts {path}: {name} has no {' and no '.join(lacking)}, so nothing stands for it")
    return value


def _list(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
        raise RequestError(f"--prompts {path}: {name} is no list of texts that are not empty")
    if name != "filler" and len(set(value)) < len(value):
        raise RequestError(f"--prompts {path}: {name} has a text twice, expected each once")
    return tuple(value)


def drawn_from(pieces: Sequence[str]) -> Filler:
    """Filler of pieces that are drawn at random."""

    def draw(random: Random) -> Iterator[str]:
        while True:
            yield random.choice(pieces)

    return draw


def cut_from(text: str) -> Filler:
    """Filler of a text's sentences in their order, from a random one on, and from the beginning again at the end.

    Raises: RequestError if the text has no words.
    """
    if not _SENTENCE.search(text):
        raise RequestError("the text of --haystack has no sentence: give another one")

    def cut(random: Random) -> Iterator[str]:
        start = random.randrange(len(text))
        while True:
            yield from (match[0].rstrip() for match in _SENTENCE.finditer(text, start))
            start = 0

    return cut
