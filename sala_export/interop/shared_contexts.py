"""Contexts of many requests, where what several have in common is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..runtime.session import Session

Ids = NDArray[np.int32]

_LEAST_SHARED = 16
"""Tokens. Fewer are read again, because a fork takes as long."""
_MOST_HELD = 6
"""Sessions that wait for later contexts. Each takes a Lightning state of its own, 48 MiB for 9B."""


@dataclass(frozen=True, slots=True)
class ReadContext:
    """A context that has been read."""

    session: Session
    """It stands at the end of the context. Only `own` may go on."""
    is_shared: bool
    """Later contexts need the session as it is."""

    def own(self) -> Session:
        """A session to go on with."""
        return self.session.fork() if self.is_shared else self.session


def in_order(contexts: Sequence[Ids]) -> list[int]:
    """Places of the contexts in the order of their tokens, so that what begins alike stands together."""
    # Bytes compare as numbers do if the highest comes first.
    return sorted(range(len(contexts)), key=lambda at: contexts[at].astype(">i4").tobytes())


def read_contexts(
    contexts: Sequence[Ids], new_session: Callable[[], Session], dense_len: int
) -> Iterator[tuple[int, ReadContext]]:
    """Read contexts one after the other, each when it is asked for. Yields the place of each with it.

    A context of `dense_len` tokens or more is attended sparsely from its beginning on, and a shorter one densely. So
    the two kinds have nothing in common.

    Args: contexts: int32 [tokens] of at least one token each.
    Raises: what `Session.prefill` and `Session.fork` raise.
    """
    order = in_order(contexts)
    for is_sparse in (False, True):
        places = [at for at in order if (len(contexts[at]) >= dense_len) is is_sparse]
        yield from zip(places, _read_alike([contexts[at] for at in places], new_session), strict=True)


def _read_alike(contexts: Sequence[Ids], new_session: Callable[[], Session]) -> Iterator[ReadContext]:
    """Read contexts that are all dense or all sparse, in the order of `in_order`."""
    common = [_common(before, after) for before, after in pairwise(contexts)]
    held: list[Session] = []
    for at, context in enumerate(contexts):
        while held and at and held[-1].position > common[at - 1]:
            held.pop()
        reached = held[-1].position if held else 0
        for place in _places(common, at, reached, _MOST_HELD - len(held)):
            held.append(_read_up_to(place, context, held, new_session))
        if held and held[-1].position == len(context):
            yield ReadContext(held[-1], is_shared=True)
        else:
            yield ReadContext(_read_up_to(len(context), context, held, new_session), is_shared=False)


def _read_up_to(place: int, context: Ids, held: Sequence[Session], new_session: Callable[[], Session]) -> Session:
    session = held[-1].fork() if held else new_session()
    session.prefill(context[session.position : place], context_length=len(context))
    return session


def _places(common: Sequence[int], at: int, reached: int, most: int) -> list[int]:
    """Where context number `at` parts from later ones, in rising order, as far as it pays to wait there.

    Args: common: tokens that each context has in common with the next; reached: where a session waits already.
    """
    falling: list[int] = []
    for follower in range(at, len(common) if most else at):
        if common[follower] < reached + _LEAST_SHARED:
            break
        if not falling or common[follower] < falling[-1]:
            falling.append(common[follower])
    chosen: list[int] = []
    for place in reversed(falling):
        if len(chosen) < most and place >= reached + _LEAST_SHARED:
            chosen.append(place)
            reached = place
    return chosen


def _common(first: Ids, second: Ids) -> int:
    """Tokens with which both begin."""
    shorter = min(len(first), len(second))
    differing = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differing[0]) if len(differing) else shorter
