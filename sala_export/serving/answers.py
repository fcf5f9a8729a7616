"""Answers to requests: kept contexts, the scheduler, and the text of what it draws."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from ..runtime.answer import StoppingDecoder
from ..runtime.options import GenerateOptions, stop_strings
from .echo import Echo, echoed
from .errors import BUSY_SECONDS, ApiError
from .events import End, Event, Piece, Progress, Token
from .kept import Begun, Ids, Kept, KeptContexts
from .threads import in_thread

if TYPE_CHECKING:
    from ..runtime.prompt import DecoderLike
    from ..runtime.scheduler import Answer, Scheduler
    from ..runtime.session import Session
    from ..runtime.text import Tokenizer
    from .metrics import Metrics


_DRAIN_SECONDS = 0.01
_PATIENCE_SECONDS = 0.2

_REASONS = {
    "stop_token": "stop",
    "stop_string": "stop",
    "max_new_tokens": "length",
    "max_context": "length",
    "cancelled": "stop",
}


@dataclass(kw_only=True, slots=True)
class AnswerRequest:
    """What is to be answered."""

    ids: Ids
    """The whole prompt, int32 [tokens]."""
    options: Sequence[GenerateOptions]
    """Options of each choice, without stop strings."""
    stop_strings: list[str] = field(default_factory=list)
    spells_special_tokens: bool = False
    """Let the text have special tokens that the model draws, such as those around a tool call."""
    priority: int = 0
    with_tokens: bool = False
    """Let pieces tell their tokens, with log-probabilities if the options ask for them."""
    echo: Echo | None = None
    """Let each choice begin with the prompt."""

    @property
    def prompt_logprobs(self) -> int | None:
        """How many of the likeliest tokens to find at each place of the prompt. None: the prompt is only read."""
        return None if self.echo is None else self.echo.logprobs


@dataclass(slots=True)
class Usage:
    """Tokens of a request so far."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """Draws answers for requests. Of one event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        contexts: KeptContexts,
        metrics: Metrics,
        *,
        max_context: int,
        max_wait: float | None,
        most_requests: int | None,
        speculation: int | None,
        waits_for_store: bool,
    ) -> None:
        """Args: max_wait: seconds that a request may wait; most_requests: that may run or wait. None: no limit.
        speculation: tokens to draft for a step of each answer; waits_for_store: an answer ends when its context is
        stored.
        """
        self._waits_for_store = waits_for_store
        self._speculation = speculation
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._contexts = contexts
        self._metrics = metrics
        self.max_context = max_context
        """Tokens of a prompt with its answer."""
        self._max_wait = max_wait
        self._most_requests = most_requests
        self._open: set[_Work] = set()
        self._endings: set[asyncio.Task[Kept | None]] = set()

    def room_for(self, prompt_tokens: int, asked: int | None, default: int, *, param: str = "max_tokens") -> int:
        """Tokens that an answer may have. Raises: ApiError if the prompt, or with it the answer, does not fit."""
        room = self.max_context - prompt_tokens
        if room < (1 if asked is None else asked):
            answer = f", and {param} asks for {asked}" if asked else ""
            raise ApiError(
                400,
                f"this server holds {self.max_context} tokens of context: the prompt has {prompt_tokens}{answer}: "
                "shorten the prompt or ask for less",
                param=param if asked and room > 0 else "messages",
                code="context_length_exceeded",
            )
        return min(room, default) if asked is None else asked

    @contextlib.asynccontextmanager
    async def answering(self, request: AnswerRequest, usage: Usage) -> AsyncIterator[AsyncIterator[Event]]:
        """Begin an answer, and end it when the block is left, whether all of it was taken or not.

        What has been read stays as a kept context. Args: usage: is kept up to date.
        """
        self._require_place()
        work = _Work()
        self._open.add(work)
        try:
            async with contextlib.aclosing(self._events(request, usage, work)) as events:
                yield events
        finally:
            self._open.discard(work)
            for answer in work.answers:
                answer.cancel()
            ending = self._in_background(self._end(work))
        if self._waits_for_store and (kept := await asyncio.shield(ending)) is not None:
            await kept.is_settled.wait()

    async def drain(self) -> None:
        """End all answers, and wait until their contexts are kept."""
        while self._open or self._endings:
            for work in self._open:
                for answer in work.answers:
                    answer.cancel()
            await asyncio.sleep(_DRAIN_SECONDS)

    @property
    def requests(self) -> int:
        """Requests that have not ended."""
        return len(self._open) + len(self._endings)

    async def settle(self) -> None:
        """Wait until the contexts of those answers are kept that have ended by now."""
        if endings := [*self._endings]:
            await asyncio.wait(endings)

    def counter(self, stage: str) -> Callable[[], int]:
        """What tells how many answers are in a stage."""
        return lambda: sum(answer.progress.stage == stage for work in self._open for answer in work.answers)

    def _require_place(self) -> None:
        """Raises: ApiError if so many requests are there that one more would be refused."""
        if self._most_requests is not None and len(self._open) >= self._most_requests:
            raise ApiError(
                429,
                f"{len(self._open)} requests run or wait, as many as the server takes: try again when some have ended",
                kind="rate_limit_error",
                code="busy",
                retry_after=BUSY_SECONDS,
            )

    async def _events(self, request: AnswerRequest, usage: Usage, work: _Work) -> AsyncGenerator[Event]:
        start = time.monotonic()
        first, *others = request.options
        new_tokens = len(request.options) * first["max_new_tokens"]
        self._contexts.require_fit(len(request.ids) + first["max_new_tokens"])
        await self.settle()  # the next turn of a conversation finds the one before it
        begun = work.begun = await self._contexts.begin(
            request.ids, new_tokens, is_fresh=request.prompt_logprobs is not None
        )
        usage.cached_tokens = begun.cached_tokens
        self._metrics.prompt(len(request.ids), begun.cached_tokens)
        # What several answers have in common is read before they part.
        reading: GenerateOptions = {"max_new_tokens": 0} if others else first
        async for progress in self._read(request, begun, reading, work, start):
            yield progress
        if request.echo is not None:
            text, tokens = await self._echoed(request, request.echo, work.answers[0])
            for choice in range(len(request.options)):
                yield Piece(choice=choice, text=text, tokens=tokens)
        if others:
            await work.answers[0].ended()
            work.answers[0].taken()  # an error comes out here
            work.answers.clear()
            sessions = [begun.session, *[await in_thread(begun.session.fork) for _ in others]]
            for session, options in zip(sessions, request.options, strict=True):
                work.answers.append(await self._submit_patiently(session, options, request))
        choices = [self._drawn(answer, at, request, usage, start) for at, answer in enumerate(work.answers)]
        async with contextlib.aclosing(_merged(choices) if others else choices[0]) as events:
            async for event in events:
                yield event

    async def _echoed(self, request: AnswerRequest, echo: Echo, answer: Answer[int]) -> tuple[str, list[Token]]:
        """The prompt that an answer has read, as text and, with its log-probabilities, as tokens.

        Raises: ApiError if the server ends before it has read all of it.
        """
        scores = answer.prompt_scores
        if echo.logprobs is not None and scores is None:
            raise ApiError(503, "the server is ending", kind="server_error", code="draining")
        return await asyncio.to_thread(echoed, echo, self._tokenizer, request.ids, scores)

    async def _read(
        self, request: AnswerRequest, begun: Begun, options: GenerateOptions, work: _Work, start: float
    ) -> AsyncIterator[Progress]:
        """Submit a request, and tell how far it is until its prompt has been read.

        If there is no memory for it, and nothing runs whose end it could wait for, kept contexts go.
        """
        is_refused = True
        while is_refused:
            before = begun.session.position  # further than at first, if the memory ended within the prompt
            if before and request.prompt_logprobs is not None:  # which a context that was read has not
                await in_thread(begun.session.reset)
                before = 0
            checkpoints = [place for place in begun.checkpoints if place > before]
            answer = self._submit(begun.session, request.ids[before:], options, request, checkpoints)
            work.answers[:] = [answer]
            processed = -1
            while True:
                now = answer.progress
                if now.prompt_tokens_done > processed:
                    processed = now.prompt_tokens_done
                    yield Progress(
                        total=len(request.ids),
                        cached=begun.cached_tokens,
                        processed=before + processed,
                        seconds=time.monotonic() - start,
                    )
                if now.stage in ("generate", "ended"):
                    break
                await answer.changed()
            is_refused = now.stage == "ended" and answer.finish_reason is None and self._lacks_memory(answer)

    def _lacks_memory(self, answer: Answer[int]) -> bool:
        """Whether an answer ended for want of memory that was found since. Raises: its error otherwise."""
        try:
            answer.taken()
        except RunError as error:
            if error.code != "OutOfMemory" or not self._contexts.evict():
                raise
            return True
        return False

    async def _submit_patiently(
        self, session: Session, options: GenerateOptions, request: AnswerRequest
    ) -> Answer[int]:
        """Submit one of several answers whose prompt has been read. It waits outside if too many wait already."""
        while True:
            try:
                return self._submit(session, request.ids[:0], options, request, [])
            except RunError as error:
                if error.code != "Busy":
                    raise
            await asyncio.sleep(_PATIENCE_SECONDS)

    def _submit(
        self, session: Session, ids: Ids, options: GenerateOptions, request: AnswerRequest, checkpoints: list[int]
    ) -> Answer[int]:
        """Let a request wait for its turn. Raises: RunError if too many wait."""
        options = {**options, "speculation": self._speculation}
        return self._scheduler.submit_tokens(
            session,
            ids,
            checkpoints=checkpoints,
            prompt_logprobs=request.prompt_logprobs if len(ids) else None,
            priority=request.priority,
            max_wait=self._max_wait,
            **options,
        )

    async def _drawn(
        self, answer: Answer[int], choice: int, request: AnswerRequest, usage: Usage, start: float
    ) -> AsyncGenerator[Event]:
        decoder = self._decoder(request)
        plain = self._tokenizer.stream_decoder(skip_special_tokens=not request.spells_special_tokens)
        clock = self._metrics.answer(start)
        has_stopped = False
        while not (answer.is_done or has_stopped):
            await answer.changed()
            text, tokens, count = "", [], 0
            taken = answer.taken()
            logprobs = answer.logprobs
            for place, token_id in enumerate(taken):
                count += 1
                text += decoder.push(token_id)
                if request.with_tokens:
                    token_logprobs = logprobs[place] if logprobs else None
                    tokens.append(Token(id=token_id, text=plain.push(token_id), logprobs=token_logprobs))
                has_stopped = isinstance(decoder, StoppingDecoder) and decoder.found
                if has_stopped:
                    break
            usage.completion_tokens += count
            clock.tokens(count)
            if text or tokens:
                yield Piece(choice=choice, text=text, tokens=tokens)
        if has_stopped:
            answer.cancel()
        elif text := decoder.finish():
            yield Piece(choice=choice, text=text, tokens=[])
        found = _stop_string(decoder, request.stop_strings)
        reason = "stop" if found is not None else _REASONS[answer.finish_reason or "cancelled"]
        yield End(choice=choice, reason=reason, stop_string=found)

    def _decoder(self, request: AnswerRequest) -> DecoderLike:
        decoder = self._tokenizer.stream_decoder(skip_special_tokens=not request.spells_special_tokens)
        matcher = stop_strings(request.stop_strings)
        return decoder if matcher is None else StoppingDecoder(decoder, matcher)

    async def _end(self, work: _Work) -> Kept | None:
        """Keep the context of the first choice, when nobody draws from it any more. The others go.

        Returns: as `KeptContexts.keep`.
        """
        for answer in work.answers:
            await answer.ended()
        return None if work.begun is None else await self._contexts.keep(work.begun)

    def _in_background(self, work: Coroutine[Any, Any, Kept | None]) -> asyncio.Task[Kept | None]:
        task = asyncio.get_running_loop().create_task(work)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task


def _stop_string(decoder: DecoderLike, strings: Sequence[str]) -> str | None:
    """The stop string before which a text has ended: the shortest, if several begin there."""
    if not (isinstance(decoder, StoppingDecoder) and decoder.found):
        return None
    return min((each for each in strings if decoder.held.startswith(each)), key=len)


@dataclass(slots=True, eq=False)
class _Work:
    """What runs for a request."""

    begun: Begun | None = None
    answers: list[Answer[int]] = field(default_factory=list)
    """The answers that may still run. The first is drawn from the session of `begun`."""


async def _merged(sources: Sequence[AsyncGenerator[Event]]) -> AsyncGenerator[Event]:
    """Yield what several iterators yield, as it comes. What one of them raises comes out."""
    queue: asyncio.Queue[Event | int] = asyncio.Queue(maxsize=len(sources))

    async def feed(place: int, source: AsyncGenerator[Event]) -> None:
        try:
            async for event in source:
                await queue.put(event)
        finally:
            await queue.put(place)

    tasks = [asyncio.ensure_future(feed(place, source)) for place, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            event = await queue.get()
            if isinstance(event, int):
                left -= 1
                await tasks[event]
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
