"""`/v1/completions`"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ...runtime.logprobs import TokenLogprobs
from ..answers import AnswerRequest, Usage
from ..echo import Echo
from ..errors import invalid
from ..events import End, Event, Piece, Progress
from ..kept import Ids
from ..service import Service
from ..stream import DONE, event
from .described import described_progress, described_usage, finite
from .parameters import IDS_SCHEMA, Accepted, SamplingParameters, Streaming, checked_ids

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""
_MOST_PROMPTS = 128
_MOST_PROMPT_LOGPROBS = 1 << 18
"""Log-probabilities of prompts' tokens, and of the likeliest in their places, in one answer."""
_MANY_TOKENS = 256
"""More are described in a thread, so that others get their turns."""

_Prompt = str | list[int]


def _checked_prompt(value: Any) -> Any:
    """A prompt, or several, as they are. Raises: PydanticCustomError for the first fault."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "Input should be a text, a list of token ids, or a list of these")
    if not isinstance(value[0], (str, list)):
        return checked_ids(value)
    if len(value) > _MOST_PROMPTS:
        raise PydanticCustomError("prompts", "Input should be at most {most} prompts", {"most": _MOST_PROMPTS})
    if [] in value:
        raise PydanticCustomError("prompt", "Input should be prompts of at least one token")
    return [each if isinstance(each, str) else checked_ids(each) for each in value]


_ONE_PROMPT = [{"type": "string"}, {**IDS_SCHEMA, "minItems": 1}]
_PROMPTS = {"type": "array", "items": {"anyOf": _ONE_PROMPT}, "minItems": 1, "maxItems": _MOST_PROMPTS}


class CompletionRequest(SamplingParameters, Streaming, Accepted):
    """A request to go on with a text."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "best_of": "ask for n answers and choose",
        "suffix": "the model goes on with a text, and fills in nothing",
    }

    model: str = Field(min_length=1, max_length=1024)
    prompt: Annotated[
        _Prompt | list[_Prompt],
        PlainValidator(_checked_prompt),
        WithJsonSchema({"anyOf": [*_ONE_PROMPT, _PROMPTS]}),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31, description="0 only reads the prompt.")
    echo: bool = Field(
        default=False, description="Begin each choice with the prompt, and with its `logprobs` if these are asked for."
    )
    add_special_tokens: bool = Field(default=True, description="Begin the prompt as the tokenizer begins texts.")

    async def prepare(self, service: Service) -> list[AnswerRequest]:
        """Look at the request, and make its prompts. Raises: ApiError or SalaError for what is wrong with it."""
        service.require_model(self.model)
        self.require_stream()
        prompts = self._prompts()
        ids = [await self._ids(service, prompt) for prompt in prompts]
        self._require_few_logprobs(sum(map(len, ids)))
        return [self._request(service, *each) for each in zip(prompts, ids, strict=True)]

    def _require_few_logprobs(self, tokens: int) -> None:
        """Raises: ApiError if the answer would tell of more of the prompts' tokens than fits into one."""
        if not self.echo or self.logprobs is None:
            return
        count = tokens * (1 + self.logprobs) * (self.n or 1)
        if count > _MOST_PROMPT_LOGPROBS:
            raise invalid(
                "echo",
                f"echo and logprobs {self.logprobs} ask for {count} log-probabilities of {tokens} tokens of prompts, "
                f"and one answer has at most {_MOST_PROMPT_LOGPROBS}: ask for fewer, send less at once, or use "
                "sala-export eval",
            )

    def _prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if is_one else prompt

    async def _ids(self, service: Service, prompt: str | list[int]) -> Ids:
        if not isinstance(prompt, str):
            return await asyncio.to_thread(np.asarray, prompt, np.int32)
        made = await asyncio.to_thread(service.prompts.of_text, prompt, add_special_tokens=self.add_special_tokens)
        if not len(made.ids):
            raise invalid("prompt", "the prompt is empty: give at least one character")
        return made.ids

    def _request(self, service: Service, prompt: str | list[int], ids: Ids) -> AnswerRequest:
        room = service.answers.room_for(len(ids), self.max_tokens, _DEFAULT_MAX_TOKENS)
        options = self.options(service.stop_tokens, choices=self.n or 1, max_new_tokens=room, logprobs=self.logprobs)
        service.model.check_generate(**options[0])
        return AnswerRequest(
            ids=ids,
            options=options,
            stop_strings=self.stop_strings,
            priority=self.priority,
            with_tokens=self.logprobs is not None,
            echo=self._echo(prompt),
        )

    def _echo(self, prompt: str | list[int]) -> Echo | None:
        if not self.echo:
            return None
        text = prompt if isinstance(prompt, str) else None
        return Echo(text=text, has_added_tokens=text is not None and self.add_special_tokens, logprobs=self.logprobs)


class TextCompletion:
    """The answers to a `CompletionRequest`, in one piece or in chunks."""

    def __init__(self, service: Service, request: CompletionRequest, answers: list[AnswerRequest]) -> None:
        self._service = service
        self._request = request
        self._answers = answers
        self._usages = [Usage(prompt_tokens=len(each.ids)) for each in answers]
        self._choices_each = request.n or 1
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.settings.model_names[0],
        }

    async def whole(self) -> dict[str, Any]:
        """The answers as one object."""
        choices = [_Choice(at) for at in range(len(self._answers) * self._choices_each)]
        async with aclosing(self._events()) as events:
            async for index, each in events:
                if not isinstance(each, Progress):
                    await self._add(choices[index], each)
        return {**self._head, "choices": [each.described() for each in choices], "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answers as server-sent events. The first comes when the request has been accepted."""
        offsets = [0] * (len(self._answers) * self._choices_each)
        async with aclosing(self._events()) as events:
            async for index, each in events:
                choice = _Choice(index, offset=offsets[index])
                further: dict[str, Any] = {}
                if isinstance(each, Progress):
                    further = {"prompt_progress": described_progress(each)} if self._request.return_progress else {}
                else:
                    await self._add(choice, each)
                    offsets[index] = choice.end
                described = choice.described() | ({} if isinstance(each, End) else {"finish_reason": None})
                yield event({**self._head, "choices": [described], **further})
        if self._request.includes_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    async def _add(self, choice: _Choice, event: Piece | End) -> None:
        with_logprobs = self._request.logprobs is not None
        if isinstance(event, Piece) and len(event.tokens) > _MANY_TOKENS:
            await asyncio.to_thread(choice.add, event, self._service, with_logprobs=with_logprobs)
        else:
            choice.add(event, self._service, with_logprobs=with_logprobs)

    async def _events(self) -> AsyncGenerator[tuple[int, Event]]:
        """What comes of all prompts, one after the other, with the index of the choice."""
        for place, (request, usage) in enumerate(zip(self._answers, self._usages, strict=True)):
            async with self._service.answers.answering(request, usage) as events:
                async for each in events:
                    choice = 0 if isinstance(each, Progress) else each.choice
                    yield place * self._choices_each + choice, each

    def _usage(self) -> dict[str, Any]:
        return described_usage(
            Usage(
                prompt_tokens=sum(each.prompt_tokens for each in self._usages),
                cached_tokens=sum(each.cached_tokens for each in self._usages),
                completion_tokens=sum(each.completion_tokens for each in self._usages),
            )
        )


class _Choice:
    """One choice, or what a chunk brings of it."""

    def __init__(self, index: int, *, offset: int = 0) -> None:
        """Args: offset: characters of the choice before this chunk."""
        self._index = index
        self._text: list[str] = []
        self._logprobs: dict[str, list[Any]] | None = None
        self._reason: str | None = None
        self.end = offset

    def add(self, event: Piece | End, service: Service, *, with_logprobs: bool) -> None:
        if isinstance(event, End):
            self._reason = event.reason
            return
        self._text.append(event.text)
        if not with_logprobs:
            return
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        logprobs = self._logprobs = self._logprobs or {name: [] for name in names}
        for token in event.tokens:
            found = token.logprobs
            logprobs["tokens"].append(token.text)
            logprobs["token_logprobs"].append(None if found is None else finite(found.logprob))
            logprobs["top_logprobs"].append(None if found is None else _described_top(found, service))
            logprobs["text_offset"].append(self.end)
            self.end += len(token.text)

    def described(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "text": "".join(self._text),
            "logprobs": self._logprobs,
            "finish_reason": self._reason,
        }


def _described_top(found: TokenLogprobs, service: Service) -> dict[str, float]:
    """The likeliest tokens in a place, and the one that is there. Of those of one text, the likeliest."""
    texts: dict[str, float] = {}
    for token_id, logprob in [*found.top, (found.token_id, found.logprob)]:
        texts.setdefault(service.token_text(token_id), finite(logprob))
    return texts
