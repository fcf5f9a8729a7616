"""A server whose model says what a test wrote down, and that keeps the prompts that it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import pytest

from sala_export.errors import SalaError
from sala_export.serving.answers import AnswerRequest, Usage
from sala_export.serving.events import End, Event, Piece, Progress
from sala_export.serving.service import Service

CACHED_TOKENS = 2


def in_pieces(text: str) -> list[str]:
    """The text as tokens of three characters."""
    return [text[start : start + 3] for start in range(0, len(text), 3)]


@dataclass(kw_only=True, slots=True)
class Script:
    """What the model says next."""

    pieces: list[str]
    """Each is a token."""
    reason: str = "stop"
    stop_string: str | None = None
    error: SalaError | None = None
    """Comes up behind the pieces."""
    requests: list[AnswerRequest] = field(default_factory=list)
    """What was asked so far."""

    def prompt(self, service: Service) -> str:
        """The text of the last request's prompt."""
        decoder = service.tokenizer.stream_decoder(skip_special_tokens=False)
        return "".join(map(decoder.push, self.requests[-1].ids.tolist())) + decoder.finish()


@contextmanager
def scripted(service: Service, script: Script) -> Iterator[None]:
    """Let a service say what a script has until the block is left."""

    @asynccontextmanager
    async def answering(request: AnswerRequest, usage: Usage) -> AsyncIterator[AsyncIterator[Event]]:
        script.requests.append(request)
        usage.cached_tokens = CACHED_TOKENS
        yield _said(script, len(request.ids), usage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.answers, "answering", answering)
        yield


async def _said(script: Script, prompt_tokens: int, usage: Usage) -> AsyncIterator[Event]:
    for processed in (CACHED_TOKENS, prompt_tokens):
        yield Progress(total=prompt_tokens, cached=CACHED_TOKENS, processed=processed, seconds=0.0)
    for piece in script.pieces:
        usage.completion_tokens += 1
        yield Piece(choice=0, text=piece, tokens=[])
    if script.error is not None:
        raise script.error
    yield End(choice=0, reason=script.reason, stop_string=script.stop_string)
