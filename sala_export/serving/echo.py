"""Prompts that are told in front of their answers, with how probable the model found their tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.logprobs import TokenLogprobs
from .events import Token

if TYPE_CHECKING:
    from ..runtime.scores import Scores
    from ..runtime.text import Tokenizer
    from .kept import Ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Echo:
    """How to tell a prompt."""

    text: str | None
    """The prompt as it was sent. None for one of token ids."""
    has_added_tokens: bool
    """The tokenizer has put tokens around the text, which are no part of it."""
    logprobs: int | None
    """Tell of each token how probable the model found it, and so many of the likeliest ones. None tells of none."""


def echoed(echo: Echo, tokenizer: Tokenizer, ids: Ids, scores: Scores | None) -> tuple[str, list[Token]]:
    """A prompt as text, and as tokens if there are scores. It takes as long as the prompt is long.

    Token ids are told as their text, in which special tokens are spelled. Tokens that the tokenizer added have none.
    """
    if echo.text is not None and scores is None:
        return echo.text, []
    before, after = tokenizer.around_texts if echo.has_added_tokens else ((), ())
    decoder = tokenizer.stream_decoder(skip_special_tokens=False)
    within = range(len(before), len(ids) - len(after))
    texts = [decoder.push(token_id) if at in within else "" for at, token_id in enumerate(ids.tolist())]
    text = "".join(texts) + decoder.finish() if echo.text is None else echo.text
    return text, [] if scores is None else _scored(scores, texts)


def _scored(scores: Scores, texts: list[str]) -> list[Token]:
    """The tokens of a prompt. The first of a context has no log-probability."""
    columns = zip(
        scores.token_ids.tolist(),
        texts,
        scores.logprobs.tolist(),
        scores.top_ids.tolist(),
        scores.top_logprobs.tolist(),
        strict=True,
    )
    return [
        Token(id=token_id, text=text, logprobs=_logprobs(token_id, logprob, top_ids, top_logprobs))
        for token_id, text, logprob, top_ids, top_logprobs in columns
    ]


def _logprobs(token_id: int, logprob: float, top_ids: list[int], top_logprobs: list[float]) -> TokenLogprobs | None:
    if math.isnan(logprob):
        return None
    # A small vocabulary may have fewer than were asked for.
    top = tuple(each for each in zip(top_ids, top_logprobs, strict=True) if each[0] >= 0)
    return TokenLogprobs(token_id=token_id, logprob=logprob, top=top)
