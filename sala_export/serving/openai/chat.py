"""`/v1/chat/completions`"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, Literal, assert_never

from pydantic import Field

from ..chats import ANY_TOOL, ChatTurn, Delta, PreparedChat, prepare
from ..errors import invalid
from ..events import End, Progress
from ..parsing import Content, Reasoning, ToolArguments, ToolCallBegun
from ..parsing import Event as Parsed
from ..service import Service
from ..settings import Caller
from ..stream import DONE, event
from .described import described_progress, described_token, described_usage
from .messages import (
    MOST_MESSAGES,
    MOST_TOOLS,
    ChatTool,
    Message,
    NamedTool,
    ToolChoice,
    template_messages,
    template_tools,
)
from .parameters import Accepted, SamplingParameters, Streaming
from .response_format import ResponseFormat, schema_of

_CHUNK = "chat.completion.chunk"


class ChatRequest(SamplingParameters, Streaming, Accepted):
    """A request for the next message of a conversation."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "audio": "the model writes text",
        "functions": "it is OpenAI's older form: use tools",
        "function_call": "it is OpenAI's older form: use tool_choice",
        "prediction": "the server has no speculation",
        "web_search_options": "the server searches nothing",
        "store": "the server keeps no answers",
        "verbosity": "say in a message how long the answer should be",
        "moderation": "the server judges no text",
    }

    model: str = Field(min_length=1, max_length=1024)
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31, description="Another name of max_tokens.")
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    modalities: list[Literal["text"]] | None = None
    tools: list[ChatTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    context: str | None = Field(
        default=None, description="The name of a context (/v1/contexts), whose text the conversation goes on from."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Further variables of the chat template, such as enable_thinking."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    async def prepare(self, service: Service, caller: Caller) -> PreparedChat:
        """Look at the request, and make its prompt. Raises: ApiError or SalaError for what is wrong with it."""
        service.require_model(self.model)
        tools = template_tools(self.tools or ())
        forced = None
        if isinstance(self.tool_choice, NamedTool):
            forced = self.tool_choice.function.name
        elif self.tool_choice == "required":
            forced = ANY_TOOL
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "top_logprobs is given without logprobs: set logprobs to true")
        self.require_stream()
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        turn = ChatTurn(
            messages=template_messages(self.messages),
            document=None if self.context is None else await service.contexts.document(caller, self.context),
            tools=() if self.tool_choice == "none" else tools,
            forced_tool=forced,
            parallel_tool_calls=self.parallel_tool_calls,
            variables=self._variables(service),
            json_schema=schema_of(self.response_format),
            sampling=self,
            max_new_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            max_tokens_param=limit,
            choices=self.n or 1,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )
        return await prepare(service, turn)

    def _variables(self, service: Service) -> dict[str, Any]:
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None and service.prompts.reads("enable_thinking"):
            variables.setdefault("enable_thinking", self.reasoning_effort != "none")
        return variables


class Completion:
    """The answer to a `ChatRequest`, in one piece or in chunks."""

    def __init__(self, service: Service, request: ChatRequest, chat: PreparedChat) -> None:
        self._service = service
        self._request = request
        self._chat = chat
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.settings.model_names[0],
        }

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = [_Choice(at, with_logprobs=self._request.logprobs) for at in range(self._request.n or 1)]
        async with aclosing(self._chat.events(self._service)) as events:
            async for each in events:
                if not isinstance(each, Progress):
                    choices[each.choice].add(each, self._service)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice.described() for choice in choices],
            "usage": described_usage(self._chat.usage),
        }

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events. The first comes when the request has been accepted."""
        has_begun = False
        async with aclosing(self._chat.events(self._service)) as events:
            async for each in events:
                if not has_begun:
                    has_begun = True
                    for choice in range(self._request.n or 1):
                        yield self._chunk(choice, {"role": "assistant", "content": ""})
                if isinstance(each, Progress):
                    if self._request.return_progress:
                        yield self._chunk(0, {}, prompt_progress=described_progress(each))
                elif isinstance(each, End):
                    yield self._chunk(each.choice, {}, finish_reason=each.reason)
                else:
                    for data in self._deltas(each):
                        yield data
        if self._request.includes_usage:
            yield event({**self._head, "object": _CHUNK, "choices": [], "usage": described_usage(self._chat.usage)})
        yield DONE

    def _deltas(self, delta: Delta) -> Iterator[bytes]:
        logprobs = None
        if self._request.logprobs:
            logprobs = {"content": [described_token(each, self._service) for each in delta.tokens], "refusal": None}
        for part in delta.parsed or [Content("")]:
            yield self._chunk(delta.choice, _described_part(part), logprobs=logprobs)
            logprobs = None

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **further: Any,
    ) -> bytes:
        described = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event({**self._head, "object": _CHUNK, "choices": [described], **further})


class _Choice:
    """One choice while it comes."""

    def __init__(self, index: int, *, with_logprobs: bool) -> None:
        self._index = index
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[ToolCallBegun, list[str]]] = []
        self._tokens: list[dict[str, Any]] | None = [] if with_logprobs else None
        self._reason = "stop"

    def add(self, event: Delta | End, service: Service) -> None:
        if isinstance(event, End):
            self._reason = event.reason
            return
        if self._tokens is not None:
            self._tokens += [described_token(each, service) for each in event.tokens]
        for part in event.parsed:
            match part:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case ToolCallBegun():
                    self._calls.append((part, []))
                case ToolArguments(index, text):
                    self._calls[index][1].append(text)

    def described(self) -> dict[str, Any]:
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": None if self._calls and not content else content}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(arguments)}}
                for call, arguments in self._calls
            ]
        logprobs = None if self._tokens is None else {"content": self._tokens, "refusal": None}
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._reason}


def _described_part(part: Parsed) -> dict[str, Any]:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case ToolCallBegun(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case ToolArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    assert_never(part)
