"""Lays out a text to a length in tokens, as a stream of token ids."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import RequestError
from ..runtime.text import StreamEncoder, Tokenizer
from .tasks import HaystackReading, Question

_PARTS = re.compile(r"\s*\S{1,12}")
"""Parts of a sentence, of which as many as fit end a text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Text around each prompt: that of a chat template, or next to nothing."""

    before: str = ""
    after: str = "\n"
    """What stands between a question and the answer."""
    is_chat: bool = False
    """True if the text spells the tokens that begin a conversation, so that none are added."""


class HaystackWriter:
    """Turns a text that grows into token ids, and knows how many there are.

    A tokenizer that streams gives exactly the ids of the whole text. The pieces given to another one, whose texts
    cannot be cut, are encoded one by one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._encoder: StreamEncoder | None = None
        if tokenizer.streams:
            self._encoder = tokenizer.stream_encoder(add_special_tokens=False)
        self._given = 0
        self._waiting = 0
        """Most tokens that wait for what comes next."""

    @property
    def tokens(self) -> int:
        """Number of tokens so far. Where some are not certain yet, it is the most that there can be."""
        return self._given + self._waiting

    def cost(self, piece: str) -> int:
        """Number of tokens of a piece by itself."""
        return len(self._tokenizer.encode(piece, add_special_tokens=False, literal=True))

    def begin(self, ids: list[int]) -> list[int]:
        """Count ids that come before all text. Returns them."""
        self._given += len(ids)
        return ids

    def push(self, piece: str, *, literal: bool = True) -> list[int]:
        """Add a piece. Returns the ids that are certain. Args: literal: special tokens in it are ordinary text."""
        if self._encoder is None:
            return self.begin(self._tokenizer.encode(piece, add_special_tokens=False, literal=literal))
        # The last word by itself: once the encoder gives something, all that waits is of what came last.
        words, space, last = piece.rpartition(" ")
        return [each for part in (words, space + last) for each in self._pushed(self._encoder, part, literal=literal)]

    def _pushed(self, encoder: StreamEncoder, part: str, *, literal: bool) -> list[int]:
        ids = encoder.push(part, literal=literal) + encoder.settle()
        cost = self.cost(part)
        self._waiting = cost if ids else self._waiting + cost
        return self.begin(ids)

    def finish(self) -> list[int]:
        """End the text. Returns the remaining ids."""
        self._waiting = 0
        return self.begin(self._encoder.finish() if self._encoder else [])


def leading_ids(tokenizer: Tokenizer, frame: Frame) -> list[int]:
    """Ids that begin a context, for example that of `<s>`. None where the frame spells them."""
    if frame.is_chat:
        return []
    text = "a"
    whole, alone = tokenizer.encode(text), tokenizer.encode(text, add_special_tokens=False)
    starts = range(len(whole) - len(alone) + 1)
    return whole[: next(start for start in starts if whole[start : start + len(alone)] == alone)]


def question_ids(question: Question, tokenizer: Tokenizer, frame: Frame) -> list[int]:
    """Ids of a question behind its text, with the beginning of its answer."""
    writer = HaystackWriter(tokenizer)
    ids = writer.push(f"\n\n{question.text}")
    if behind := frame.after + question.answer:
        ids += writer.push(behind, literal=False)
    return ids + writer.finish()


def least_tokens(reading: HaystackReading, tokenizer: Tokenizer, frame: Frame) -> int:
    """Tokens of a text without filler."""
    writer = HaystackWriter(tokenizer)
    pieces = [frame.before, reading.intro, *(f" {insert.text}" for insert in reading.inserts)]
    return len(leading_ids(tokenizer, frame)) + sum(writer.cost(piece) for piece in pieces)


def haystack_ids(reading: HaystackReading, tokens: int, tokenizer: Tokenizer, frame: Frame) -> Iterator[list[int]]:
    """Yield the ids of a text of at most `tokens` tokens, a few less, with its inserts at their depths.

    Args: tokens: at least `least_tokens`.
    Raises: RequestError if the tokenizer has no tokens for the filler.
    """
    writer = HaystackWriter(tokenizer)
    yield writer.begin(leading_ids(tokenizer, frame))
    if frame.before:
        yield writer.push(frame.before, literal=False)
    if reading.intro:
        yield writer.push(f"{reading.intro}\n")
    inserts = deque(sorted((insert.depth, f" {insert.text}") for insert in reading.inserts))
    costs = {text: writer.cost(text) for _, text in inserts}
    begin, reserved = writer.tokens, sum(costs.values())
    for sentence in reading.filler():
        if inserts and writer.tokens >= begin + inserts[0][0] * (tokens - begin - costs[inserts[0][1]]):
            _, text = inserts.popleft()
            reserved -= costs[text]
            yield writer.push(text)
        piece = f" {sentence}"
        if not writer.cost(piece):
            raise RequestError(
                f"the tokenizer has no token for {sentence[:40]!r}: give --prompts with words that it has"
            )
        if writer.tokens + writer.cost(piece) > tokens - reserved:
            yield from _last_parts(writer, piece, tokens - reserved)
            break
        yield writer.push(piece)
    for _, text in inserts:
        yield writer.push(text)
    yield writer.finish()


def _last_parts(writer: HaystackWriter, piece: str, most: int) -> Iterator[list[int]]:
    """Yield the ids of a piece's parts, again from its beginning at its end, as long as they fit."""
    parts = [(part, writer.cost(part)) for part in _PARTS.findall(piece)]
    for part, cost in itertools.cycle([each for each in parts if each[1]]):
        if writer.tokens + cost > most:
            return
        yield writer.push(part)
