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

from ..answers import AnswerRequest, End, Event, Progress, Usage
from ..errors import invalid
from ..kept import Ids
from ..service import Service
from ..stream import DONE, event
from .described import described_progress, described_usage, finite
from .parameters import IDS_SCHEMA, Accepted, SamplingParameters, Streaming, checked_ids

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""
_MOST_PROMPTS = 128

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
        "echo": "put the prompt in front of the answer yourself",
        "suffix": "the model goes on with a text, and fills in nothing",
    }

    model: str = Field(min_length=1, max_length=1024)
    prompt: Annotated[
        _Prompt | list[_Prompt],
        PlainValidator(_checked_prompt),
        WithJsonSchema({"anyOf": [*_ONE_PROMPT, _PROMPTS]}),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    add_special_tokens: bool = Field(default=True, description="Begin the prompt as the tokenizer begins texts.")

    async def prepare(self, service: Service) -> list[AnswerRequest]:
        """Look at the request, and make its prompts. Raises: ApiError or SalaError for what is wrong with it."""
        service.require_model(self.model)
        self.require_stream()
        prompts = [await self._ids(service, prompt) for prompt in self._prompts()]
        return [self._request(service, ids) for ids in prompts]

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

    def _request(self, service: Service, ids: Ids) -> AnswerRequest:
        room = service.answers.room_for(len(ids), self.max_tokens, _DEFAULT_MAX_TOKENS)
        options = self.options(service.stop_tokens, choices=self.n or 1, max_new_tokens=room, logprobs=self.logprobs)
        service.model.check_generate(**options[0])
        return AnswerRequest(
            ids=ids,
            options=options,
            stop_strings=self.stop_strings,
            priority=self.priority,
            with_tokens=self.logprobs is not None,
        )


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
                    choices[index].add(each, self._service, with_logprobs=self._request.logprobs is not None)
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
                    choice.add(each, self._service, with_logprobs=self._request.logprobs is not None)
                    offsets[index] = choice.end
                described = choice.described() | ({} if isinstance(each, End) else {"finish_reason": None})
                yield event({**self._head, "choices": [described], **further})
        if self._request.includes_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

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

    def add(self, event: Event, service: Service, *, with_logprobs: bool) -> None:
        if isinstance(event, End):
            self._reason = event.reason
            return
        assert not isinstance(event, Progress)
        self._text.append(event.text)
        if not with_logprobs:
            return
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        logprobs = self._logprobs = self._logprobs or {name: [] for name in names}
        for token in event.tokens:
            assert token.logprobs is not None
            logprobs["tokens"].append(token.text)
            logprobs["token_logprobs"].append(finite(token.logprobs.logprob))
            top = token.logprobs.top
            logprobs["top_logprobs"].append({service.token_text(each): finite(value) for each, value in top})
            logprobs["text_offset"].append(self.end)
            self.end += len(token.text)

    def described(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "text": "".join(self._text),
            "logprobs": self._logprobs,
            "finish_reason": self._reason,
        }
