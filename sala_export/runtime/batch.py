"""Answers of several sessions, drawn together: a thin face on the C++ batch (runtime/include/sala/batch.h)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import SessionError
from .answer import StoppingDecoder
from .logprobs import LastLogprobs
from .options import GenerateOptions, generate_options, whole_number
from .prompt import DecoderLike

if TYPE_CHECKING:
    from . import _native
    from .session import Session

_SEEDS = 2**64


class BatchAnswer:
    """The answer of one session of a batch, as `Session.finish_reason` looks at it."""

    def __init__(self, decoder: DecoderLike | None) -> None:
        self.finish_reason: str | None = None
        self.has_ended = False
        self.decoder = decoder
        self.logprobs = LastLogprobs()

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
    model: _native.Model,
    sessions: Sequence[Session],
    answers: Sequence[BatchAnswer],
    options: GenerateOptions,
    stop_tokens: Sequence[int],
) -> Iterator[tuple[list[int | None], list[str]]]:
    """Yield the ids and the pieces of text of each step. Raises: as `Model.generate_batch`."""
    from . import _native

    if not sessions:
        raise SessionError("the batch has no sessions: give at least one")
    if options.get("constraint") is not None:
        raise SessionError(
            "a batch takes no constraint, which its answers would share: give each answer its own with Model.scheduler"
        )
    seed = whole_number("seed", options.get("seed", 0), 0, _SEEDS - 1)
    each = [generate_options({**options, "seed": (seed + i) % _SEEDS}, stop_tokens) for i in range(len(sessions))]
    batch = _native.BatchGeneration(model, [session._native for session in sessions], each)
    for session, answer in zip(sessions, answers, strict=True):
        session._begin_answer(answer, answer.decoder, answer.logprobs)
    return _steps(batch, answers)


def _steps(
    batch: _native.BatchGeneration, answers: Sequence[BatchAnswer]
) -> Iterator[tuple[list[int | None], list[str]]]:
    try:
        while (ids := batch.next()) is not None:
            pieces = []
            for place, (answer, token_id) in enumerate(zip(answers, ids, strict=True)):
                answer.logprobs.begin()
                answer.logprobs.add(token_id, batch.logprobs(place))
                pieces.append(answer.push(token_id))
                answer.has_ended |= token_id is None
                answer.finish_reason = batch.finish_reason(place)
                if answer.found_stop and not answer.has_ended:
                    batch.end(place)
            yield ids, pieces
        for place in range(len(answers)):
            batch.check(place)
    finally:
        batch.close()
