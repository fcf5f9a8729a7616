"""Log-likelihoods of continuations of contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.session import Session
from .shared_contexts import Ids, ReadContext, read_contexts


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """Tokens whose log-likelihood behind a context is asked for."""

    context: Ids
    """int32 [tokens], at least one."""
    tokens: Ids
    """int32 [tokens], at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What the model finds of a continuation."""

    logprob: float
    """Natural log-probability of all its tokens behind the context."""
    is_greedy: bool
    """True if each of its tokens is the likeliest one where it stands."""


def score_continuations(
    continuations: Sequence[Continuation], new_session: Callable[[], Session], dense_len: int
) -> Iterator[tuple[int, Score]]:
    """Yield the place of each continuation and its score, in an order that reads common contexts once.

    Args: new_session: makes an empty session that holds the longest context with its continuation; dense_len: that of
        the model.
    Raises: what `Session.prefill` and `Session.score` raise.
    """
    for at, context in read_contexts([each.context for each in continuations], new_session, dense_len):
        yield at, _score(context, continuations[at].tokens)


def _score(context: ReadContext, tokens: Ids) -> Score:
    # Multiple choice is often of letters. One token needs no step: its logits are those of the context's end.
    if len(tokens) == 1:
        logits = context.session.logits
        assert logits is not None, "a session has logits where a prompt has ended"
        token = int(tokens[0])
        return Score(logprob=_logprob(logits, token), is_greedy=token == int(logits.argmax()))
    scores = context.own().score(tokens, top=1)
    return Score(logprob=scores.total, is_greedy=bool((scores.top_ids[:, 0] == scores.token_ids).all()))


def _logprob(logits: NDArray[np.float32], token: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
