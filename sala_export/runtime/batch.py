"""Answers of several sessions, drawn together: a thin face on the C++ batch (runtime/include/sala/batch.h)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import SessionError
from .answer import StoppingDecoder
from .options import GenerateOptions, generate_options
from .prompt import DecoderLike

if TYPE_CHECKING:
    from . import _native
    from .session import Session

_SEEDS = 2**64


class BatchMember:
    """The answer of one session of a batch, as `Session.finish_reason` looks at it."""

    def __init__(self, session: Session, decoder: DecoderLike | None) -> None:
        self.finish_reason: str | None = None
        self.has_ended = False
        self.session = session
        self.decoder = decoder

    def push(self, token_id: int | None) -> str:
        """Take the next id, None if there is none. Returns the text that no later id can change."""
        if self.decoder is None or self.has_ended:
            return ""
        return self.decoder.finish() if token_id is None else self.decoder.push(token_id)

    @property
    def found_stop(self) -> bool:
        """True once the text has ended before a stop string."""
        return isinstance(self.decoder, StoppingDecoder) and self.decoder.found


def batch_steps(
    model: _native.Model, members: Sequence[BatchMember], options: GenerateOptions, stop_tokens: Sequence[int]
) -> Iterator[tuple[list[int | None], list[str]]]:
    """Yield the ids and the pieces of text of each step. Raises: as `Model.generate_batch`."""
    from . import _native

    if not members:
        raise SessionError("the batch has no sessions: give at least one")
    seed = options.get("seed", 0)
    each = [
        generate_options({**options, "seed": (seed + i) % _SEEDS} if isinstance(seed, int) else options, stop_tokens)
        for i in range(len(members))
    ]
    batch = _native.BatchGeneration(model, [member.session._native for member in members], each)
    for member in members:
        member.session._begin_answer(member, member.decoder)
    return _steps(batch, members)


def _steps(
    batch: _native.BatchGeneration, members: Sequence[BatchMember]
) -> Iterator[tuple[list[int | None], list[str]]]:
    try:
        while (ids := batch.next()) is not None:
            pieces = []
            for place, (member, token_id) in enumerate(zip(members, ids, strict=True)):
                pieces.append(member.push(token_id))
                member.has_ended |= token_id is None
                member.finish_reason = batch.finish_reason(place)
                if member.found_stop and not member.has_ended:
                    batch.end(place)
            yield ids, pieces
        for place in range(len(members)):
            batch.check(place)
    finally:
        batch.close()
