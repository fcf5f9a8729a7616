"""Reads a text once and asks each question about it in a fork of the session."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..progress import ProgressCallback
from ..runtime.model import Model
from ..runtime.session import PrefillProgress, Session
from ..runtime.text import Tokenizer
from ..specs import format_tokens
from .haystack import Frame, haystack_ids, least_tokens, question_ids
from .tasks import AGGREGATION, MULTI_KEY, PASSKEY, VARIABLES, HaystackReading, Question

ANSWER_TOKENS = {PASSKEY: 32, MULTI_KEY: 32, VARIABLES: 64, AGGREGATION: 64}
"""Most tokens of an answer, by task, unless the user chooses."""
_PIECE_TOKENS = 4096
_LEAST_FILL = 0.5
"""Share of a length that must be left for the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemKey:
    """The name of one question among those of an evaluation."""

    task: str
    length: int
    depth: float | None
    sample: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One question, its answer, and how right that is."""

    key: ItemKey
    context_tokens: int
    """Tokens of the text and the question."""
    expected: tuple[str, ...]
    answer: str
    """The answer, from its given beginning on."""
    score: float
    """Fraction of the expected strings that the answer has."""
    read_seconds: float
    """Seconds that reading the text took, which other questions share."""
    answer_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain JSON values."""
        fields = asdict(self)
        return {**fields.pop("key"), **fields, "expected": list(self.expected)}


def score(answer: str, expected: Sequence[str]) -> float:
    """Fraction of the expected strings that an answer has, upper and lower case alike, as RULER counts.

    A string counts only by itself: `v1` is not in `v12`, nor `12345` in `123456`.
    """
    found = [re.search(rf"(?<![0-9a-z]){re.escape(each.lower())}(?![0-9a-z])", answer.lower()) for each in expected]
    return sum(match is not None for match in found) / len(expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class HaystackReader:
    """A model that reads texts and answers questions."""

    model: Model
    tokenizer: Tokenizer
    frame: Frame
    max_new_tokens: int | None
    """Most tokens of an answer. None takes `ANSWER_TOKENS`."""

    def room(self, task: str) -> int:
        """Most tokens of an answer in a task."""
        return self.max_new_tokens or ANSWER_TOKENS[task]

    def require_room(self, task: str, length: int, reading: HaystackReading) -> None:
        """Raises: RequestError if a length has no room for a text, its questions and answers."""
        least = least_tokens(reading, self.tokenizer, self.frame)
        if self._text_tokens(task, length, reading) < least:
            raise RequestError(
                f"--lengths {format_tokens(length)}: the needles and instructions of {task} need {least} tokens: "
                "choose a larger length, or fewer --depths or --samples"
            )

    def _text_tokens(self, task: str, length: int, reading: HaystackReading) -> int:
        """Most tokens of a text, so that it, its longest question and the answer to it have `length` tokens.

        Raises: RequestError if half of the length or less is left.
        """
        questions = (len(question_ids(each, self.tokenizer, self.frame)) for each in reading.questions)
        needed = max(questions) + self.room(task)
        if length - needed <= _LEAST_FILL * length:
            raise RequestError(
                f"--lengths {format_tokens(length)}: a question and its answer need {needed} tokens in {task}: choose "
                "a larger length, or fewer --max-new-tokens"
            )
        return length - needed

    def answers(
        self,
        task: str,
        length: int,
        reading: HaystackReading,
        known: Collection[ItemKey],
        on_progress: ProgressCallback,
    ) -> Iterator[Outcome]:
        """Read a text and yield an outcome for each of its questions. Nothing is read if all are in `known`.

        Raises: RunError if a step fails.
        """
        keys = [
            ItemKey(task=task, length=length, depth=question.depth, sample=question.sample)
            for question in reading.questions
        ]
        asked = [(key, each) for key, each in zip(keys, reading.questions, strict=True) if key not in known]
        if not asked:
            return
        tokens = self._text_tokens(task, length, reading)
        base = self.model.session(max_context=length, max_checkpoints=0)
        start, phase = time.monotonic(), f"reading {task} {format_tokens(length)}"

        def report(progress: PrefillProgress) -> None:
            # The text is a few tokens shorter than `tokens`, or just as long.
            on_progress(phase, min(progress.tokens_done, tokens - 1), tokens)

        ids = _pieces(haystack_ids(reading, tokens, self.tokenizer, self.frame))
        # Of text and question, as whoever asks it has them: the answer is no part of the prompt.
        base.prefill(ids, context_length=length - self.room(task), on_progress=report)
        on_progress(phase, tokens, tokens)
        read_seconds = time.monotonic() - start
        for key, question in asked:
            yield self._asked(base, key, question, read_seconds)

    def _asked(self, base: Session, key: ItemKey, question: Question, read_seconds: float) -> Outcome:
        start = time.monotonic()
        session = base.fork()
        prompt = question_ids(question, self.tokenizer, self.frame)
        session.prefill(prompt, context_length=key.length - self.room(key.task))
        context_tokens = session.position
        text = question.answer + "".join(session.generate(max_new_tokens=self.room(key.task)))
        # What the question says itself is no answer: only what the model adds is scored.
        return Outcome(
            key=key,
            context_tokens=context_tokens,
            expected=question.expected,
            answer=text,
            score=score(text.removeprefix(question.answer), question.expected),
            read_seconds=read_seconds,
            answer_seconds=time.monotonic() - start,
        )


def _pieces(ids: Iterator[list[int]]) -> Iterator[NDArray[np.int32]]:
    """The ids in arrays of `_PIECE_TOKENS`, so that a step of the runtime is not asked for after every sentence."""
    each = itertools.chain.from_iterable(ids)
    while piece := list(itertools.islice(each, _PIECE_TOKENS)):
        yield np.array(piece, np.int32)
