"""Calibration text as token ids: JSON lines with a `text` or `input_ids`, or the text that ships with the package."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.added_tokens import read_tokenizer
from ..checkpoint.config import SalaConfig
from ..checkpoint.library_tokenizer import LibraryTokenizer, hidden_panics
from ..errors import BundleError, CheckpointError, RequestError, SessionError
from ..files import TextFile
from ..specs import TOKENIZER_FILE, Precision
from .shipped_text import documents

MIN_TOKENS = 16
"""Fewest tokens of all samples together. Fewer say nothing about the range of activations."""
_MOST_LINE = 64 << 20
"""Characters. A million tokens have a tenth."""


FILE_SAMPLES, FILE_SEQUENCE = 16, 512
"""Lines of a file, and tokens of each."""
SHIPPED_SEQUENCE, SHIPPED_LONG_SEQUENCE = 192, 1024
"""Tokens of each document of the shipped text, and of one that gives a long sample."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """The choice of tokens to calibrate with."""

    file: Path | None = None
    """File of JSON lines, each an object with `text` or with `input_ids`. None takes the text that ships with the
    package."""
    samples: int | None = None
    """Number of lines to take, from the first. None takes 16 lines, or every document of the shipped text."""
    sequence_length: int | None = None
    """Number of tokens to take of each line, from the first. A shorter line gives a shorter sample. None takes 512, of
    the shipped text 192, or 1024 of a long document."""
    say: Callable[[str], None] = field(default=logger.info, compare=False)
    """Called with a line for people if the shipped text is taken."""

    def __post_init__(self) -> None:
        for option, value in (("--samples", self.samples), ("--sequence-length", self.sequence_length)):
            if value is not None and value < 1:
                raise RequestError(f"{option} {value}: expected at least 1")

    def require_empty(self, precision: Precision) -> None:
        """Refuse choices that mean nothing in a precision that needs no samples. Raises: RequestError."""
        options = {"--calibration": self.file, "--samples": self.samples, "--sequence-length": self.sequence_length}
        given = [option for option, value in options.items() if value is not None]
        if given:
            raise RequestError(
                f"{' and '.join(given)}: {precision} is quantised without text, its scales follow from the numbers "
                f"themselves: leave {'it' if len(given) == 1 else 'them'} out"
            )

    def read(self, config: SalaConfig, texts: Mapping[str, TextFile]) -> list[Tensor]:
        """Read the samples, each int64 [T].

        Args: `texts` are the checkpoint's files of its tokenizer by name, which text needs.
        Raises: RequestError naming file and line, CheckpointError if there is no tokenizer, or a damaged one.
        """
        if self.sequence_length is not None and self.sequence_length > config.max_position_embeddings:
            raise RequestError(
                f"--sequence-length {self.sequence_length} is more than the {config.max_position_embeddings} tokens "
                "that the model was made for"
            )
        if self.file is None:
            return self._shipped(config, texts)
        return self._of_file(self.file, config, texts)

    def _shipped(self, config: SalaConfig, texts: Mapping[str, TextFile]) -> list[Tensor]:
        tokenizer = _load_tokenizer(texts, "the text that ships with sala-export")
        found: list[Tensor] = []
        for document in documents():
            if len(found) == self.samples:
                break
            length = self.sequence_length or (SHIPPED_LONG_SEQUENCE if document.is_long else SHIPPED_SEQUENCE)
            ids = _encoded(tokenizer, document.to_calibrate)[: min(length, config.max_position_embeddings)]
            _require_in_vocabulary(ids, config.vocab_size, document.name)
            found.append(torch.tensor(ids))
        tokens = sum(len(ids) for ids in found)
        self.say(
            f"calibrating with the text that ships with sala-export, {tokens:,} tokens: give --calibration FILE for "
            "your own"
        )
        return found

    def _of_file(self, file: Path, config: SalaConfig, texts: Mapping[str, TextFile]) -> list[Tensor]:
        samples, length = self.samples or FILE_SAMPLES, self.sequence_length or FILE_SEQUENCE
        tokenizer: LibraryTokenizer | None = None
        found: list[Tensor] = []
        for where, fields in _lines(file):
            if len(found) == samples:
                break
            if "input_ids" in fields:
                ids = _checked_ids(fields["input_ids"], config.vocab_size, where)
            else:
                tokenizer = tokenizer or _load_tokenizer(texts, where)
                ids = _encoded(tokenizer, _text(fields, where))
                _require_in_vocabulary(ids, config.vocab_size, where)
            if ids:
                found.append(torch.tensor(ids[:length]))
        tokens = sum(len(ids) for ids in found)
        if tokens < MIN_TOKENS:
            raise RequestError(
                f"{file} gives {tokens} tokens: calibration needs at least {MIN_TOKENS}, better some thousands"
            )
        return found


def shipped_tokens(config: SalaConfig, texts: Mapping[str, TextFile], tokens: int) -> Tensor:
    """Up to `tokens` tokens, int64 [T], of the part of the shipped text that `SampleRequest` does not read.

    Every document has the same share, in the order of their names. Raises: CheckpointError for a damaged tokenizer,
    RequestError for one whose tokens are outside the vocabulary.
    """
    tokenizer = _load_tokenizer(texts, "the text that ships with sala-export")
    every = list(documents())
    parts: list[int] = []
    for index, document in enumerate(every):
        share = -(-(tokens - len(parts)) // (len(every) - index))
        ids = _encoded(tokenizer, document.to_verify)[:share]
        _require_in_vocabulary(ids, config.vocab_size, document.name)
        parts += ids
    return torch.tensor(parts)


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line that is not blank, with its place for messages."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_MOST_LINE), ""), start=1):
                if len(line) == _MOST_LINE:
                    raise RequestError(f"{file}:{number} has {_MOST_LINE} characters or more: expected JSON lines")
                if line.strip():
                    yield f"{file}:{number}", _object(line, f"{file}:{number}")
    except OSError as error:
        raise RequestError(f"--calibration {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"--calibration {file} is not UTF-8 text: expected JSON lines") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f'{where} is not JSON ({error}): expected a line such as {{"text": "..."}}') from None
    if not isinstance(fields, dict):
        raise RequestError(f'{where} holds {type(fields).__name__}, expected an object such as {{"text": "..."}}')
    return fields


def _text(fields: dict[str, Any], where: str) -> str:
    text = fields.get("text")
    if not isinstance(text, str):
        raise RequestError(f"{where} has no text: each line needs a string `text` or token ids `input_ids`")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where}: text has half a surrogate pair at character {error.start}: it is no Unicode text"
        ) from None
    return text


def _checked_ids(ids: Any, vocab_size: int, where: str) -> list[int]:
    if not isinstance(ids, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise RequestError(f"{where}: input_ids is not a list of integers")
    _require_in_vocabulary(ids, vocab_size, where)
    return ids


def _require_in_vocabulary(ids: list[int], vocab_size: int, where: str) -> None:
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise RequestError(f"{where}: token {outside[0]} is outside the vocabulary of {vocab_size}")


def _load_tokenizer(texts: Mapping[str, TextFile], where: str) -> LibraryTokenizer:
    if TOKENIZER_FILE not in texts:
        raise CheckpointError(
            f"{where} is text, but the checkpoint has no {TOKENIZER_FILE}: copy it there, or give `input_ids` in a "
            "--calibration FILE"
        )
    with _failing_as_a_checkpoint():
        return read_tokenizer(texts)[0]


def _encoded(tokenizer: LibraryTokenizer, text: str) -> list[int]:
    with _failing_as_a_checkpoint():
        return tokenizer.encode(text, add_special_tokens=True).ids


@contextmanager
def _failing_as_a_checkpoint() -> Iterator[None]:
    try:
        with hidden_panics():
            yield
    except (BundleError, SessionError) as error:
        raise CheckpointError(str(error)) from None
