"""Requests that run side by side: a thin face on the C++ scheduler (runtime/include/sala/scheduler.h)."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError
from ..specs import MOST_TOKENS
from .answer import StoppingDecoder, answer_decoder
from .logprobs import LastLogprobs, TokenLogprobs
from .options import (
    MOST_LOGPROBS,
    GenerateOptions,
    generate_options,
    optional_number,
    real_number,
    shown,
    whole_number,
    whole_numbers,
)
from .prompt import DecoderLike, Prompt, TokenizerLike, require_tokenizer, streamed_prompt, whole_prompt
from .scores import Scores
from .session import Session, require_session
from .wakeups import Wakeups

if TYPE_CHECKING:
    from . import _native

DEFAULT_MAX_WAITING = 256

_LARGEST = 2**63 - 1
_MOST_PRIORITY = 2**31 - 1

Piece = TypeVar("Piece", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestProgress:
    """How far a request has come."""

    stage: str
    """`waiting`, `prefill`, `generate` or `ended`."""
    prompt_tokens_done: int
    """Tokens of the prompt that have run."""
    prompt_tokens: int
    """Tokens of the prompt in all."""
    new_tokens: int
    """Tokens of the answer so far. A stop token is not counted."""


class Answer(Iterator[Piece], AsyncIterator[Piece], Generic[Piece]):
    """The answer to one request: pieces of text, or token ids, as soon as they are there. One thread takes them.

    It goes on whether you take the pieces or not. `close`, leaving a `with` block and letting go of the answer end it.

    In a coroutine take the pieces with `async for`, or with `changed` and `taken`. This needs no thread of its own. All
    answers of a scheduler are waited for in one event loop, of asyncio or uvloop. Another loop gets a SessionError,
    unless the first is closed. If a task that waits is cancelled, the answer goes on: call `cancel` to end it.
    `close`, and letting go of an answer that has not ended, block the loop for a step. To avoid that, call `cancel` and
    `await ended()`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        read: Callable[[int | None], Piece | None],
        decoder: DecoderLike | None,
        native: _native.Answer,
        logprobs: LastLogprobs,
        prompt: NDArray[np.int32],
    ) -> None:
        """Args: read: makes the piece for the next id, None at the end. It returns None where there is none."""
        self._scheduler = scheduler  # which must not end before its answers
        self._native = native
        self._read = read
        self._decoder = decoder
        self._logprobs = logprobs
        self._prompt = prompt
        self._seen = ("waiting", 0)  # stage, and tokens of the prompt that had run, when `changed` last returned
        weakref.finalize(self, native.close)  # its session keeps `native`

    def __next__(self) -> Piece:
        self._logprobs.begin()
        while not self.is_done:
            piece = self._take()
            if piece is not None:
                return piece
        raise StopIteration

    async def __anext__(self) -> Piece:
        self._logprobs.begin()
        while not self.is_done:
            await self._until(lambda: self._native.ready is not None)
            piece = self._take()
            if piece is not None:
                return piece
        raise StopAsyncIteration

    async def changed(self) -> None:
        """Wait until there is something to take, or the request has moved on since the last `changed`.

        It moves on when it begins, when a chunk of its prompt has run, when its answer begins, and when it ends.
        Returns at once if it has ended.
        Raises: SessionError in another event loop than that of the scheduler.
        """
        await self._until(lambda: self._native.ready is not None or self._place() != self._seen)
        self._seen = self._place()

    async def ended(self) -> None:
        """Wait until the request has ended and its session is free. Nothing is taken, and no error is raised for it.

        Raises: SessionError in another event loop than that of the scheduler.
        """
        await self._until(lambda: self._place()[0] == "ended")

    def taken(self) -> list[Piece]:
        """Take what is there now, without waiting. A list without pieces if nothing is.

        The error that ended the answer is raised by the first call that has no token to take before it.
        """
        self._logprobs.begin()
        pieces: list[Piece] = []
        ready = self._native.ready
        while ready is not None and not self.is_done:
            piece = self._take()
            if piece is not None:
                pieces.append(piece)
            ready = self._native.ready
            if ready == "error":
                break
        return pieces

    @property
    def is_done(self) -> bool:
        """True once the answer has ended, and all of it is taken: the error too, if one ended it."""
        return self._native.is_done

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of the tokens that the last `taken`, or the last step of an iteration, has taken, in order.

        Of an answer of token ids there is one for each id. A piece of text may come of several tokens, or of none at
        the end. The list has none if the request was not asked for `logprobs`. A stop token has none.
        """
        return list(self._logprobs.of_tokens)

    @property
    def prompt_scores(self) -> Scores | None:
        """How probable the model found each token of the prompt. None unless the request has `prompt_logprobs`.

        They are there once the prompt has been read: when there is a token of the answer, or its end. Each look copies
        them.
        """
        found = self._native.prompt_scores
        if found is None:
            return None
        logprobs, top_ids, top_logprobs = found
        return Scores(token_ids=self._prompt, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the next token. True if it is there, or if the answer has ended."""
        time = real_number("seconds", seconds)
        if not time >= 0:
            raise SessionError(f"seconds is {shown(seconds)}, expected 0 or more")
        return self._native.wait(time)

    def cancel(self) -> None:
        """End the request when the step that runs has ended. The session keeps what it has read and drawn."""
        self._native.cancel()

    def close(self) -> None:
        """Cancel, and wait until the session is free."""
        self._native.close()

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended. None before, and after an error.

        It is `stop_token`, `stop_string`, `max_new_tokens`, `max_context` or `cancelled`.
        """
        if isinstance(self._decoder, StoppingDecoder) and self._decoder.found:
            return "stop_string"
        return self._native.finish_reason

    @property
    def progress(self) -> RequestProgress:
        """How far the request has come."""
        stage, prompt_tokens_done, prompt_tokens, new_tokens = self._native.progress
        return RequestProgress(
            stage=stage, prompt_tokens_done=prompt_tokens_done, prompt_tokens=prompt_tokens, new_tokens=new_tokens
        )

    def _take(self) -> Piece | None:
        token_id = self._native.next()
        self._logprobs.add(token_id, self._native.logprobs)
        return self._read(token_id)

    def _place(self) -> tuple[str, int]:
        stage, prompt_tokens_done, *_ = self._native.progress
        return stage, prompt_tokens_done

    async def _until(self, is_so: Callable[[], bool]) -> None:
        await self._scheduler._wakeups.until(self._native, is_so)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class Scheduler:
    """Reads the prompts of many sessions of one model and draws their answers side by side. `Model.scheduler` makes it.

    It has a thread of its own. Close it, with `with` or `close`, when you need it no more.
    """

    def __init__(
        self,
        model: _native.Model,
        tokenizer: TokenizerLike | None,
        default_stop_tokens: list[int],
        *,
        max_running: int | None,
        max_waiting: int,
        max_cache_bytes: int | None,
        prefill_share: float,
    ) -> None:
        from . import _native

        self._tokenizer = tokenizer
        self._default_stop_tokens = default_stop_tokens
        self._native = _native.Scheduler(
            model,
            max_running=optional_number("max_running", max_running, 1, _LARGEST),
            max_waiting=whole_number("max_waiting", max_waiting, 0, _LARGEST),
            max_cache_bytes=optional_number("max_cache_bytes", max_cache_bytes, 0, _LARGEST),
            prefill_share=real_number("prefill_share", prefill_share),
        )
        self._wakeups = Wakeups(self._native)
        # Its thread may be in Python, so it must end before the interpreter does.
        self._close = weakref.finalize(self, _close, self._native, self._wakeups)

    def submit(
        self,
        session: Session,
        prompt: Prompt = "",
        *,
        priority: int = 0,
        max_wait: float | None = None,
        checkpoints: Sequence[int] = (),
        prompt_logprobs: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer[str]:
        """Append a prompt to a session and draw an answer, beside those of others. Returns at once.

        For example, ask two questions about one book at the same time:

            with llm.scheduler() as scheduler:
                who = scheduler.submit(book.fork(), "Who is Natasha?")
                where = scheduler.submit(book.fork(), "Where does it begin?")
                print(*who, *where, sep="")

        Args:
            session: of this model. You cannot use it otherwise until the answer has ended, except `Session.stop`.
            prompt: as in `Session.prefill`. It may be empty if the session has a context. An iterator is read before
                this returns.
            priority: requests of a larger number begin first, and read their prompts first.
            max_wait: seconds that the request may wait before it begins. After that it ends with an error.
            checkpoints: positions of the context that lie within the prompt, in rising order. The session keeps a
                checkpoint at each, to rewind to or to save, as it does where a prompt ends.
            prompt_logprobs: find how probable the model finds each token of the prompt, as `Session.score` does, and so
                many of the likeliest tokens at each place, 0 to 20: see `Answer.prompt_scores`.
            options: as in `Session.generate`. `max_new_tokens=0` only reads the prompt.
        Raises: what `Session.prefill` and `Session.generate` refuse; RunError with `code` `Busy` if too many requests
            wait. The answer raises what comes up later: RunError if a step fails, if there is no memory, or if the
            request has waited for too long.
        """
        text = _Text(answer_decoder(require_tokenizer(self._tokenizer), options.get("stop_strings")))
        begun = self._submit(session, prompt, priority, max_wait, checkpoints, prompt_logprobs, options, text)
        return Answer(self, text.read, text.decoder, *begun)

    def submit_tokens(
        self,
        session: Session,
        prompt: Prompt = (),
        *,
        priority: int = 0,
        max_wait: float | None = None,
        checkpoints: Sequence[int] = (),
        prompt_logprobs: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer[int]:
        """As `submit`, but the answer is of token ids. `stop_strings` need a tokenizer."""
        strings = options.get("stop_strings")
        text = None if strings is None else _Text(answer_decoder(require_tokenizer(self._tokenizer), strings))
        begun = self._submit(session, prompt, priority, max_wait, checkpoints, prompt_logprobs, options, text)
        if text is None:
            return Answer(self, lambda token_id: token_id, None, *begun)
        return Answer(self, text.read_id, text.decoder, *begun)

    def close(self) -> None:
        """Cancel all requests and wait for the step that runs."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _submit(
        self,
        session: Session,
        prompt: Prompt,
        priority: int,
        max_wait: float | None,
        checkpoints: Sequence[int],
        prompt_logprobs: int | None,
        options: GenerateOptions,
        text: _Text | None,
    ) -> tuple[_native.Answer, LastLogprobs, NDArray[np.int32]]:
        require_session(session)
        ids = _whole_ids(prompt, self._tokenizer, begins=session.position == 0)
        native = self._native.submit(
            session._native,
            ids,
            generate_options(options, self._default_stop_tokens),
            priority=whole_number("priority", priority, -_MOST_PRIORITY, _MOST_PRIORITY),
            max_wait=None if max_wait is None else real_number("max_wait", max_wait),
            checkpoints=whole_numbers("checkpoints", checkpoints, 0, MOST_TOKENS),
            prompt_logprobs=optional_number("prompt_logprobs", prompt_logprobs, 0, MOST_LOGPROBS),
            on_token=None if text is None else text.on_token,
        )
        logprobs = LastLogprobs()
        session._begin_answer(native, None if text is None else text.decoder, logprobs)
        return native, logprobs, ids


def _close(native: _native.Scheduler, wakeups: Wakeups) -> None:
    native.close()
    wakeups.close()


class _Text:
    """The text of an answer. If there are stop strings, it is made before the next step runs."""

    def __init__(self, decoder: DecoderLike) -> None:
        self.decoder = decoder
        self._pieces: deque[str] = deque()  # made in the scheduler's thread, and not read yet
        self.on_token = self._take if isinstance(decoder, StoppingDecoder) else None

    def _take(self, token_id: int) -> bool:
        """Take an id in the scheduler's thread. False ends the answer."""
        piece = ""  # also if the decoder fails: the token is there
        try:
            piece = self.decoder.push(token_id)
        finally:
            self._pieces.append(piece)
        return not cast(StoppingDecoder, self.decoder).found

    def read(self, token_id: int | None) -> str | None:
        if token_id is None:
            return self.decoder.finish() or None
        return (self.decoder.push(token_id) if self.on_token is None else self._pieces.popleft()) or None

    def read_id(self, token_id: int | None) -> int | None:
        self.read(token_id)
        return token_id


def _whole_ids(prompt: Prompt, tokenizer: TokenizerLike | None, *, begins: bool) -> NDArray[np.int32]:
    """Token ids of a prompt, int32 [tokens], those of a stream too."""
    if isinstance(prompt, str) and not prompt:
        return np.empty(0, np.int32)
    whole = whole_prompt(prompt, tokenizer, begins=begins)
    if whole is not None:
        return whole
    return np.concatenate([np.empty(0, np.int32), *streamed_prompt(prompt, tokenizer, begins=begins)])
